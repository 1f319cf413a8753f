//! What a scheduler bounds, and what it allows each tenant.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use palisade_core::{Error, ErrorKind, Result, Tenant};
use serde::{Deserialize, Serialize};

use crate::ClassOrder;
use crate::wheel::Millis;

/// What bounds a scheduler. Every default suits one machine with a gigabyte to spare.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SchedulerLimits {
    /// How priority classes share.
    pub order: ClassOrder,
    /// Tasks without an outcome. Default 200 000.
    pub tasks_max: usize,
    /// Bytes of inputs, arguments and labels of tasks without an outcome. Default 512 MiB.
    pub bytes_max: usize,
    /// Bytes of input, arguments and labels of one task. Default 16 MiB.
    pub task_bytes_max: usize,
    /// Tenants known at once: those with tasks, with limits of their own, or not yet forgotten. Default 10 000.
    pub tenants_max: usize,
    /// What every tenant may do, except where it has limits of its own.
    pub tenant: TenantLimits,
    /// Whether each tenant has a share of what all have in common, whatever its limits are, so that none can take it all.
    /// Default: yes.
    ///
    /// * Of the queue's tasks and bytes, a tenant may have as much as is left: alone a half, beside others less,
    ///   and some is always left.
    /// * The same goes for a worker's [places](palisade_core::LeaseRequest::places), as far as tasks hold them that may run
    ///   for more than a minute. Those that end sooner may use them all.
    pub tenant_shares: bool,
    /// How long an outcome can be looked up. Default 1 hour.
    pub result_time: Duration,
    /// Outcomes kept; beyond that the oldest go early of the tenant that has most. Default 100 000.
    pub results_max: usize,
    /// Bytes of outputs kept; beyond that the oldest outcomes go early of the tenant that has most. Default 256 MiB.
    pub results_bytes_max: usize,
    /// How long a task stays in the dead-letter queue. Default 7 days.
    pub dead_letter_time: Duration,
    /// Tasks in the dead-letter queue; beyond that the oldest go early of the tenant that has most. Default 10 000.
    pub dead_letters_max: usize,
    /// Bytes of output, error text and log one completion may carry. Default 64 MiB.
    pub completion_bytes_max: usize,
    /// Longest time a lease lasts unless renewed. Default 1 hour.
    pub lease_time_max: Duration,
    /// Most tasks in one answer to a lease request or a listing. Default 1024.
    pub batch_max: usize,
    /// A task whose worker was lost this often goes to the dead-letter queue. Default 3. When a scheduler with a journal
    /// comes back from a crash, what ran beside others is run alone before it counts, so that a task which ends the process
    /// takes no other along.
    pub lost_max: u32,
    /// How long after its deadline a running task's worker may still report. Default 5 s.
    pub deadline_grace: Duration,
}

impl Default for SchedulerLimits {
    fn default() -> Self {
        SchedulerLimits {
            order: ClassOrder::default(),
            tasks_max: 200_000,
            bytes_max: 512 << 20,
            task_bytes_max: 16 << 20,
            tenants_max: 10_000,
            tenant: TenantLimits::default(),
            tenant_shares: true,
            result_time: Duration::from_secs(3600),
            results_max: 100_000,
            results_bytes_max: 256 << 20,
            dead_letter_time: Duration::from_secs(7 * 24 * 3600),
            dead_letters_max: 10_000,
            completion_bytes_max: 64 << 20,
            lease_time_max: Duration::from_secs(3600),
            batch_max: 1024,
            lost_max: 3,
            deadline_grace: Duration::from_secs(5),
        }
    }
}

/// What a tenant may do. Where a tenant's own limits say `None`, it has [`SchedulerLimits::tenant`]; what that leaves open
/// is not bounded.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TenantLimits {
    /// Its share against other tenants, from 1 to 1000 ([`ClassOrder::WEIGHT_MAX`]). In the end 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Tasks running at once, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_max: Option<u32>,
    /// Tasks without an outcome; submissions beyond it are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks_max: Option<usize>,
    /// Submissions; those above it are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submit_rate: Option<Rate>,
    /// Tasks started; those above it wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_rate: Option<Rate>,
}

impl TenantLimits {
    /// These, and where they say nothing, `others`.
    pub(crate) fn or(self, others: TenantLimits) -> TenantLimits {
        TenantLimits {
            weight: self.weight.or(others.weight),
            running_max: self.running_max.or(others.running_max),
            tasks_max: self.tasks_max.or(others.tasks_max),
            submit_rate: self.submit_rate.or(others.submit_rate),
            start_rate: self.start_rate.or(others.start_rate),
        }
    }

    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] for a limit that would stop the tenant for ever, or a weight out of range.
    pub fn validate(&self) -> Result<()> {
        let invalid = |message: &'static str| Err(Error::new(ErrorKind::InvalidInput, "set_limits", message));
        if self.weight.is_some_and(|weight| !(1..=ClassOrder::WEIGHT_MAX).contains(&weight)) {
            return invalid("a tenant's weight must be from 1 to 1000");
        }
        if self.running_max == Some(0) {
            return invalid("a tenant that may run 0 tasks would never run one")
                .map_err(|e| e.with_help("cancel its tasks"));
        }
        for rate in [self.submit_rate, self.start_rate].into_iter().flatten() {
            if !Rate::PER_SECOND.contains(&rate.per_second) || rate.burst == 0 {
                return invalid("a rate must be from 1e-6 to 1e9 per second, with a burst of 1 or more");
            }
        }
        Ok(())
    }
}

/// A tenant that has limits of its own or tasks without an outcome.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TenantReport {
    /// Which one.
    pub tenant: Tenant,
    /// What it may do: its own limits, and for the rest those of every tenant.
    pub limits: TenantLimits,
    /// Its own limits, if it has any.
    pub own_limits: Option<TenantLimits>,
    /// Tasks that wait for a worker.
    pub queued: u64,
    /// Tasks that wait for their time or for a retry.
    pub delayed: u64,
    /// Tasks that are leased.
    pub running: u64,
}

/// How often something may happen: on average, and at once after a pause.
///
/// As text: `10/s`, `90/m`, `5/h`; how often at once after a colon, as in `10/s:50`, else as often as in one second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How often on average: from 1e-6 to 1e9.
    pub per_second: f64,
    /// How often at once: at least 1.
    pub burst: u32,
}

impl Rate {
    /// What a tenant's rate may be: once in eleven days is next to never, and faster than this no machine is.
    const PER_SECOND: std::ops::RangeInclusive<f64> = 1e-6..=1e9;
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let wrong = || format!("`{:.40}` is no rate; write for example `10/s`, `90/m` or `10/s:50`", text.trim());
        let (often, burst) = match text.trim().split_once(':') {
            Some((often, burst)) => (often, Some(burst.parse().map_err(|_| wrong())?)),
            None => (text.trim(), None),
        };
        let (number, unit) = often.split_once('/').ok_or_else(wrong)?;
        let seconds = match unit {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let per_second = number.parse::<f64>().map_err(|_| wrong())? / seconds;
        // What is no number becomes 0, which no tenant may have.
        let rate = Rate { per_second, burst: burst.unwrap_or(per_second.ceil().max(1.0) as u32) };
        let limits = TenantLimits { start_rate: Some(rate), ..TenantLimits::default() };
        limits.validate().map_err(|error| error.message().to_owned())?;
        Ok(rate)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s:{}", self.per_second, self.burst)
    }
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Millis,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Millis) -> Bucket {
        Bucket { tokens: f64::from(rate.burst), at: now }
    }

    /// Whether there is a token now; else how long until there is one.
    pub(crate) fn ready(&mut self, rate: Rate, now: Millis) -> Result<(), Duration> {
        let passed = now.saturating_sub(self.at) as f64 / 1000.0;
        self.tokens = (self.tokens + passed * rate.per_second).min(f64::from(rate.burst));
        self.at = self.at.max(now);
        // Sums of fractions miss whole numbers by a little.
        let missing = 1.0 - self.tokens - 1e-6;
        if missing <= 0.0 {
            return Ok(());
        }
        Err(Duration::from_millis(((missing / rate.per_second * 1000.0).ceil() as u64).clamp(1, 1 << 40)))
    }

    /// Whether nothing was taken from it for long enough.
    pub(crate) fn is_full(&mut self, rate: Rate, now: Millis) -> bool {
        // To count what came since.
        let _ = self.ready(rate, now);
        self.tokens >= f64::from(rate.burst) - 1e-6
    }

    /// Puts a token back that was taken for nothing.
    pub(crate) fn put_back(&mut self, rate: Rate, now: Millis) {
        let _ = self.ready(rate, now);
        self.tokens = (self.tokens + 1.0).min(f64::from(rate.burst));
    }

    /// Takes the token that [`Bucket::ready`] saw.
    pub(crate) fn take(&mut self) {
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_allows_its_rate_exactly() {
        let rate = Rate { per_second: 10.0, burst: 3 };
        let mut bucket = Bucket::full(rate, 1000);
        let mut allowed = Vec::new();
        for now in 1000..2000 {
            if bucket.ready(rate, now).is_ok() {
                bucket.take();
                allowed.push(now - 1000);
            }
        }
        assert_eq!(allowed, [0, 1, 2, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
        assert_eq!(bucket.ready(rate, 1999), Err(Duration::from_millis(1)));
        assert_eq!(bucket.ready(rate, 0), Err(Duration::from_millis(1)), "a clock that goes back gives nothing");
    }

    #[test]
    fn limits_that_stop_a_tenant_are_refused() {
        let refused = |change: fn(&mut TenantLimits)| {
            let mut limits = TenantLimits::default();
            change(&mut limits);
            limits.validate().is_err_and(|error| error.kind() == ErrorKind::InvalidInput)
        };
        assert!(TenantLimits::default().validate().is_ok());
        assert!(refused(|l| l.weight = Some(0)) && refused(|l| l.weight = Some(1001)));
        assert!(refused(|l| l.running_max = Some(0)));
        assert!(refused(|l| l.submit_rate = Some(Rate { per_second: 0.0, burst: 1 })));
        assert!(refused(|l| l.start_rate = Some(Rate { per_second: f64::NAN, burst: 1 })));
        assert!(refused(|l| l.start_rate = Some(Rate { per_second: 1.0, burst: 0 })));
        assert!(refused(|l| l.start_rate = Some(Rate { per_second: 1e-300, burst: 1 })));
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        let rate = |per_second, burst| Ok(Rate { per_second, burst });
        assert_eq!("10/s".parse(), rate(10.0, 10));
        assert_eq!(" 2.5/s ".parse(), rate(2.5, 3));
        assert_eq!("30/m".parse(), rate(0.5, 1));
        assert_eq!("1/h:7".parse(), rate(1.0 / 3600.0, 7));
        assert_eq!(Rate { per_second: 0.5, burst: 9 }.to_string().parse(), rate(0.5, 9));
        for wrong in ["", "10", "/s", "10/d", "10/s:", "10/s:0", "-1/s", "0/s", "nan/s", "inf/s", "1e300/s", "10/s:-1"]
        {
            let error = wrong.parse::<Rate>().unwrap_err();
            assert!(error.contains("rate"), "{wrong}: {error}");
        }
    }

    #[test]
    fn own_limits_go_before_those_of_all() {
        let all = TenantLimits { running_max: Some(4), tasks_max: Some(9), ..TenantLimits::default() };
        let own = TenantLimits { weight: Some(3), running_max: Some(8), ..TenantLimits::default() };
        let both = own.or(all);
        assert_eq!((both.weight, both.running_max, both.tasks_max), (Some(3), Some(8), Some(9)));
        assert_eq!(TenantLimits::default().or(all), all);
    }
}
