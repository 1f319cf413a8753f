//! A histogram that threads feed without waiting for each other.
//!
//! The one of `prometheus-client` has a lock, for which the threads of a busy executor wait; with it, metrics take more of
//! the processor than they may (`metrics_collection_overhead` in the benches).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Places to count in. Threads beyond share them.
const SHARDS: usize = 8;

/// Where this thread counts.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

/// Clones are the same histogram.
#[derive(Clone)]
pub(crate) struct Histogram(Arc<Inner>);

struct Inner {
    /// The largest value of each bucket but the last, which takes the rest.
    bounds: Vec<f64>,
    shards: [Shard; SHARDS],
}

/// The bits of a sum, then the count of each bucket, in cache lines of their own.
struct Shard(Box<[CachePadded<[AtomicU64; LINE]>]>);

/// Numbers in what processors fetch together.
const LINE: usize = 16;

impl Shard {
    fn new(buckets: usize) -> Shard {
        Shard((0..(buckets + 1).div_ceil(LINE)).map(|_| CachePadded::default()).collect())
    }

    fn sum(&self) -> &AtomicU64 {
        &self.0[0][0]
    }

    fn count(&self, bucket: usize) -> &AtomicU64 {
        &self.0[(bucket + 1) / LINE][(bucket + 1) % LINE]
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("bounds", &self.0.bounds).finish_non_exhaustive()
    }
}

impl Histogram {
    /// One with these bounds, which grow.
    pub(crate) fn new(bounds: impl IntoIterator<Item = f64>) -> Histogram {
        let bounds: Vec<_> = bounds.into_iter().collect();
        debug_assert!(bounds.is_sorted());
        let shards = std::array::from_fn(|_| Shard::new(bounds.len() + 1));
        Histogram(Arc::new(Inner { bounds, shards }))
    }

    pub(crate) fn observe_all(&self, values: &[f64]) {
        let shard = &self.0.shards[shard()];
        for value in values {
            let below = |bound: &f64| bound < value || value.is_nan();
            let bucket = self.0.bounds.partition_point(below);
            shard.count(bucket).fetch_add(1, Ordering::Relaxed);
        }
        let values: f64 = values.iter().sum();
        let add = |sum| Some((f64::from_bits(sum) + values).to_bits());
        let _ = shard.sum().fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// The sum of what was observed, and how many values came to each bucket. Others may count meanwhile: then the two may
    /// differ by what they are about to add.
    fn figures(&self) -> (f64, Vec<u64>) {
        let Inner { bounds, shards } = &*self.0;
        let sum = shards.iter().map(|shard| f64::from_bits(shard.sum().load(Ordering::Relaxed))).sum();
        let count = |bucket: usize| shards.iter().map(|shard| shard.count(bucket).load(Ordering::Relaxed)).sum();
        (sum, (0..=bounds.len()).map(count).collect())
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let (sum, counts) = self.figures();
        let bounds = self.0.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts.iter().copied()).collect();
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::histogram::{Histogram as Theirs, exponential_buckets};
    use prometheus_client::registry::Registry;
    use proptest::prelude::*;

    use super::*;

    fn text(histogram: impl EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static) -> String {
        let mut registry = Registry::default();
        registry.register("h", "h", histogram);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    proptest! {
        #[test]
        fn it_says_what_the_librarys_own_would(values in prop::collection::vec(0_u32..5000, 0..50)) {
            let (ours, theirs) =
                (Histogram::new(exponential_buckets(1.0, 2.0, 10)), Theirs::new(exponential_buckets(1.0, 2.0, 10)));
            // Halves, so that bounds are met, and sums do not depend on their order.
            let values: Vec<_> = values.into_iter().map(|value| f64::from(value) / 2.0).collect();
            values.chunks(7).for_each(|values| ours.observe_all(values));
            values.iter().for_each(|value| theirs.observe(*value));
            prop_assert_eq!(text(ours), text(theirs));
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let histogram = Histogram::new([1.0, 2.0]);
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| (0..1000).for_each(|number| histogram.observe_all(&[f64::from(number % 3) + 0.5])));
            }
        });
        let threads = 2 * SHARDS as u64;
        assert_eq!(histogram.figures().1, [334 * threads, 333 * threads, 333 * threads]);
        assert_eq!(histogram.figures().0, threads as f64 * (334.0 * 0.5 + 333.0 * 1.5 + 333.0 * 2.5));
        histogram.observe_all(&[f64::NAN]);
        assert_eq!(histogram.figures().1[2], 333 * threads + 1);
    }
}
