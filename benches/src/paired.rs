//! Comparing two things on a noisy machine: short rounds of both in turn, and the median of the rounds' ratios.

use std::time::{Duration, Instant};

/// What a comparison found.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// Median time of one subject call.
    pub subject: Duration,
    /// Median time of one baseline call.
    pub baseline: Duration,
    /// Median over the rounds of subject time divided by baseline time.
    pub ratio: f64,
}

/// Times `subject` against `baseline`: `rounds` rounds of `calls` calls each, in turn, the order changing every round.
/// Both closures get the number of calls to make, so that entering an executor is not part of each call.
///
/// # Panics
///
/// When `rounds` or `calls` is zero.
pub fn compare(rounds: usize, calls: u32, mut subject: impl FnMut(u32), mut baseline: impl FnMut(u32)) -> Comparison {
    assert!(rounds > 0 && calls > 0, "nothing to compare");
    let time = |work: &mut dyn FnMut(u32)| {
        let started = Instant::now();
        work(calls);
        started.elapsed() / calls
    };
    // The first round fills caches and pools, and is thrown away.
    time(&mut subject);
    time(&mut baseline);
    let mut pairs: Vec<_> = (0..rounds)
        .map(|round| {
            if round % 2 == 0 {
                let subject = time(&mut subject);
                (subject, time(&mut baseline))
            } else {
                let baseline = time(&mut baseline);
                (time(&mut subject), baseline)
            }
        })
        .collect();
    let mut ratios: Vec<_> = pairs.iter().map(|(s, b)| s.as_secs_f64() / b.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    let median = pairs.len() / 2;
    let ratio = ratios[median];
    pairs.sort_by_key(|pair| pair.0);
    let subject = pairs[median].0;
    pairs.sort_by_key(|pair| pair.1);
    Comparison { subject, baseline: pairs[median].1, ratio }
}

/// Prints a comparison with its target. A missed target is visible; it does not end the bench, since the machine may be
/// busy with something else.
pub fn report(name: &str, comparison: &Comparison, ratio_max: f64) {
    let verdict = if comparison.ratio <= ratio_max { "met" } else { "MISSED" };
    println!(
        "RATIO {name}: {:.2} x baseline ({:?} against {:?}); target at most {ratio_max} x: {verdict}",
        comparison.ratio, comparison.subject, comparison.baseline
    );
}
