//! Profile `metrics`: what every [`MetricsSink`](palisade_core::MetricsSink) promises, wherever it exports to.

use std::sync::Arc;

use palisade_core::{ErrorKind, MetricDescriptor, MetricId, MetricKind};

use super::must;
use crate::{Catalog, Check, Failure, ReadableSink, Reading, Requirement, Trial};

type Ctx = Trial<dyn ReadableSink>;

/// Everything the suite knows about metrics sinks.
pub fn catalog() -> Catalog<Ctx> {
    Catalog::of(REQUIREMENTS, CHECKS)
}

const REQUIREMENTS: &[Requirement] = &[
    must(
        "metrics.register.handle",
        "The same descriptor MUST give the same handle.",
        "figures split over several series",
    ),
    must(
        "metrics.register.names",
        "A malformed name MUST be refused, and so MUST a name that is taken by another kind.",
        "an export that nobody can read",
    ),
    must(
        "metrics.register.bounded",
        "A sink MUST bound its series, below 131 072, and refuse more with `Exhausted`.",
        "labels that come from outside fill the memory",
    ),
    must(
        "metrics.series.apart",
        "Metrics that differ in a label MUST be kept apart.",
        "one tenant's figures show another's",
    ),
    must(
        "metrics.counter.exact",
        "A counter MUST be the sum of what was added, from any thread.",
        "events that are not seen",
    ),
    must("metrics.gauge.latest", "A gauge MUST show the value set last.", "a state that never was"),
    must(
        "metrics.histogram.whole",
        "A histogram MUST count every value, whether they come one by one or several at once, and keep their sum.",
        "the slow calls are those that are missing",
    ),
    must(
        "metrics.handle.kinds",
        "A handle of another kind, or of another sink, MUST change nothing.",
        "a defect elsewhere spoils the figures",
    ),
];

const fn check(
    id: &'static str,
    requires: &'static [&'static str],
    control: &'static str,
    run: fn(&mut Ctx) -> Result<(), Failure>,
) -> Check<Ctx> {
    Check { id, requires, needs: &[], control, run }
}

const CHECKS: &[Check<Ctx>] = &[
    check("metrics.register.again", &["metrics.register.handle"], "new-handles", again),
    check("metrics.register.malformed", &["metrics.register.names"], "accepts-any-name", malformed),
    check("metrics.register.two-kinds", &["metrics.register.names"], "mixes-kinds", two_kinds),
    check("metrics.register.endless", &["metrics.register.bounded"], "unbounded-series", endless),
    check("metrics.series.labels", &["metrics.series.apart"], "merges-labels", labels),
    check("metrics.counter.threads", &["metrics.counter.exact"], "loses-counts", threads),
    check("metrics.gauge.sets", &["metrics.gauge.latest"], "adds-gauges", sets),
    check("metrics.histogram.sums", &["metrics.histogram.whole"], "loses-observations", sums),
    check("metrics.handle.foreign", &["metrics.handle.kinds"], "confuses-kinds", foreign),
];

fn descriptor(kind: MetricKind, name: &str, labels: &[(&str, &str)]) -> MetricDescriptor {
    MetricDescriptor {
        name: name.to_owned(),
        help: "A metric of the conformance suite".to_owned(),
        kind,
        labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

impl Ctx {
    fn register(&self, kind: MetricKind, name: &str, labels: &[(&str, &str)]) -> Result<MetricId, Failure> {
        self.good("register", self.subject().register(&descriptor(kind, name, labels)))
    }

    fn read(&self, name: &str, labels: &[(&str, &str)]) -> Option<Reading> {
        self.subject().read(name, &descriptor(MetricKind::Gauge, name, labels).labels)
    }

    fn expect_number(&mut self, what: &str, name: &str, labels: &[(&str, &str)], number: f64) -> Result<(), Failure> {
        let shown = self.read(name, labels);
        self.expect(what, shown, shown == Some(Reading::Number(number)))
    }
}

fn again(ctx: &mut Ctx) -> Result<(), Failure> {
    let first = ctx.register(MetricKind::Counter, "suite_events_total", &[("a", "1"), ("b", "2")])?;
    ctx.enforce();
    let second = ctx.register(MetricKind::Counter, "suite_events_total", &[("a", "1"), ("b", "2")])?;
    ctx.expect("the handle of the same descriptor", second, second == first)?;
    ctx.subject().add(first, 2);
    ctx.subject().add(second, 3);
    ctx.expect_number("their sum", "suite_events_total", &[("a", "1"), ("b", "2")], 5.0)
}

fn malformed(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.register(MetricKind::Gauge, "suite_good", &[])?;
    ctx.enforce();
    for name in ["", "with space", "9digits", "line\nbreak", "with{brace}", "\u{1f980}"] {
        let answer = ctx.subject().register(&descriptor(MetricKind::Gauge, name, &[]));
        ctx.refused(&format!("the name {name:?}"), answer, ErrorKind::InvalidInput)?;
    }
    let answer = ctx.subject().register(&descriptor(MetricKind::Gauge, "suite_label", &[("a\"b", "1")]));
    ctx.refused("a malformed name of a label", answer, ErrorKind::InvalidInput)
}

fn two_kinds(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.register(MetricKind::Gauge, "suite_size", &[("a", "1")])?;
    ctx.enforce();
    let answer = ctx.subject().register(&descriptor(MetricKind::Histogram, "suite_size", &[("a", "1")]));
    ctx.refused("the name of a gauge for a histogram", answer, ErrorKind::InvalidInput)?;
    let answer = ctx.subject().register(&descriptor(MetricKind::Histogram, "suite_size", &[("a", "2")]));
    ctx.refused("the same with other labels", answer, ErrorKind::InvalidInput)
}

fn endless(ctx: &mut Ctx) -> Result<(), Failure> {
    ctx.enforce();
    let mut refused = None;
    for number in 0..1 << 17 {
        let value = number.to_string();
        if let Err(error) = ctx.subject().register(&descriptor(MetricKind::Gauge, "suite_series", &[("n", &value)])) {
            refused = Some((number, error.kind()));
            break;
        }
    }
    let holds = matches!(refused, Some((number, ErrorKind::Exhausted)) if number >= 100);
    ctx.expect("the series that was refused", refused, holds)?;
    let first = ctx.subject().register(&descriptor(MetricKind::Gauge, "suite_series", &[("n", "0")]));
    ctx.expect("one that was there", &first, first.is_ok())
}

fn labels(ctx: &mut Ctx) -> Result<(), Failure> {
    let one = ctx.register(MetricKind::Counter, "suite_events_total", &[("tenant", "one")])?;
    let two = ctx.register(MetricKind::Counter, "suite_events_total", &[("tenant", "two")])?;
    ctx.enforce();
    ctx.subject().add(one, 1);
    ctx.subject().add(two, 20);
    ctx.expect_number("the first", "suite_events_total", &[("tenant", "one")], 1.0)?;
    ctx.expect_number("the second", "suite_events_total", &[("tenant", "two")], 20.0)
}

fn threads(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.register(MetricKind::Counter, "suite_events_total", &[])?;
    ctx.enforce();
    let sink = Arc::clone(ctx.subject());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| sink.add(id, 3)));
        }
    });
    ctx.expect_number("4 threads that added 3 a thousand times", "suite_events_total", &[], 12_000.0)
}

fn sets(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.register(MetricKind::Gauge, "suite_level", &[])?;
    ctx.enforce();
    for value in [5.0, -2.5, 1.25] {
        ctx.subject().set(id, value);
        ctx.expect_number("the value that was set", "suite_level", &[], value)?;
    }
    Ok(())
}

fn sums(ctx: &mut Ctx) -> Result<(), Failure> {
    let id = ctx.register(MetricKind::Histogram, "suite_wait_seconds", &[])?;
    ctx.enforce();
    // Sums of these are exact.
    for value in [0.5, 0.25, 1024.0, 0.0, 1e-9_f64.floor()] {
        ctx.subject().observe(id, value);
    }
    ctx.subject().observe_all(id, &[]);
    ctx.subject().observe_all(id, &[2.0, 0.125, 2.0]);
    let shown = ctx.read("suite_wait_seconds", &[]);
    ctx.expect("eight values", shown, shown == Some(Reading::Distribution { count: 8, sum: 1028.875 }))
}

fn foreign(ctx: &mut Ctx) -> Result<(), Failure> {
    let counter = ctx.register(MetricKind::Counter, "suite_events_total", &[])?;
    let gauge = ctx.register(MetricKind::Gauge, "suite_level", &[])?;
    ctx.subject().add(counter, 7);
    ctx.subject().set(gauge, 7.0);
    ctx.enforce();
    ctx.subject().set(counter, 1.0);
    ctx.subject().observe(counter, 1.0);
    ctx.subject().add(gauge, 1);
    ctx.subject().observe(gauge, 1.0);
    ctx.subject().observe_all(gauge, &[1.0, 2.0]);
    for unknown in [MetricId(u32::MAX), MetricId(1 << 20)] {
        ctx.subject().add(unknown, 1);
        ctx.subject().set(unknown, 1.0);
        ctx.subject().observe(unknown, 1.0);
    }
    ctx.expect_number("the counter", "suite_events_total", &[], 7.0)?;
    ctx.expect_number("the gauge", "suite_level", &[], 7.0)
}
