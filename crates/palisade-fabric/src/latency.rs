//! Percentiles of times, in constant room.

use std::time::Duration;

/// Buckets to a doubling: a percentile is at most a quarter too large.
const PARTS: usize = 4;
const BUCKETS: usize = 64 * PARTS;

/// Counts times in buckets that grow with the time.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies { counts: Box::new([0; BUCKETS]), total: 0 }
    }
}

impl Latencies {
    pub(crate) fn add(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    /// A time that at least `share` of all times do not exceed; zero when there is none.
    pub(crate) fn at(&self, share: f64) -> Duration {
        let wanted = (self.total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_nanos(upper(bucket));
            }
        }
        Duration::ZERO
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < PARTS as u64 {
        return nanos as usize;
    }
    let exponent = nanos.ilog2() as usize;
    let part = (nanos >> (exponent - 2)) as usize % PARTS;
    (exponent - 1) * PARTS + part
}

/// The largest time in a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < PARTS {
        return bucket as u64;
    }
    let (exponent, part) = (bucket / PARTS + 1, (bucket % PARTS) as u128);
    u64::try_from(((PARTS as u128 + part + 1) << (exponent - 2)) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_of_known_times() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.at(0.5), Duration::ZERO);
        (1..=1000).for_each(|micros| latencies.add(Duration::from_micros(micros)));
        for (share, exact) in [(0.5, 500u64), (0.9, 900), (0.99, 990), (1.0, 1000)] {
            let found = latencies.at(share).as_nanos() as u64;
            assert!((exact * 1000..=exact * 1250).contains(&found), "{share}: {found}");
        }
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_times(nanos: u64) {
            let top = upper(bucket(nanos));
            prop_assert!(bucket(nanos) < BUCKETS && top >= nanos && top as f64 <= nanos as f64 * 1.25 + 1.0);
        }
    }
}
