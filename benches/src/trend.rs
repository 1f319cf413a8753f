//! Whether a figure grows over time: the slope of a line through its samples, by least squares.

/// How fast a figure changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// Mean of the samples.
    pub mean: f64,
    /// Change per hour.
    pub per_hour: f64,
    /// Standard error of the change per hour: how much of it may be scatter.
    pub error: f64,
}

impl Trend {
    /// The line through `samples`, each with its time in seconds; `None` when fewer than three times differ.
    ///
    /// ```
    /// use palisade_benches::trend::Trend;
    ///
    /// let trend = Trend::of(&[(0.0, 10.0), (1.0, 11.0), (2.0, 12.0)]).unwrap();
    /// assert_eq!((trend.mean, trend.per_hour), (11.0, 3600.0));
    /// ```
    pub fn of(samples: &[(f64, f64)]) -> Option<Trend> {
        let count = samples.len() as f64;
        if samples.len() < 3 {
            return None;
        }
        let mean_time = samples.iter().map(|sample| sample.0).sum::<f64>() / count;
        let mean = samples.iter().map(|sample| sample.1).sum::<f64>() / count;
        let spread: f64 = samples.iter().map(|sample| (sample.0 - mean_time).powi(2)).sum();
        if spread <= 0.0 {
            return None;
        }
        let together: f64 = samples.iter().map(|sample| (sample.0 - mean_time) * (sample.1 - mean)).sum();
        let slope = together / spread;
        let scatter: f64 =
            samples.iter().map(|sample| (sample.1 - mean - slope * (sample.0 - mean_time)).powi(2)).sum();
        let error = (scatter / (count - 2.0) / spread).sqrt();
        Some(Trend { mean, per_hour: slope * 3600.0, error: error * 3600.0 })
    }

    /// Whether it grows by more than `bound` per hour, beyond twice its standard error.
    pub fn grows_beyond(self, bound: f64) -> bool {
        self.per_hour - 2.0 * self.error > bound
    }

    /// Whether it shrinks by more than `bound` per hour, beyond twice its standard error.
    pub fn shrinks_beyond(self, bound: f64) -> bool {
        -self.per_hour - 2.0 * self.error > bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_told_from_scatter() {
        let scatter = |index: usize| if index.is_multiple_of(2) { 3.0 } else { -3.0 };
        let level: Vec<_> = (0..100).map(|index| (index as f64, 50.0 + scatter(index))).collect();
        let level = Trend::of(&level).unwrap();
        assert!(!level.grows_beyond(0.0) && !level.shrinks_beyond(0.0), "{level:?}");
        let leak: Vec<_> = (0..100).map(|index| (index as f64, 50.0 + index as f64 + scatter(index))).collect();
        let leak = Trend::of(&leak).unwrap();
        assert!((leak.per_hour - 3600.0).abs() < 60.0 && leak.grows_beyond(3000.0) && !leak.grows_beyond(4000.0));
        assert!(!leak.shrinks_beyond(0.0));
        let falling: Vec<_> = (0..100).map(|index| (index as f64, -(index as f64))).collect();
        assert!(Trend::of(&falling).unwrap().shrinks_beyond(3599.0));
        assert_eq!(Trend::of(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(Trend::of(&[(1.0, 1.0); 5]), None, "all at one time");
    }
}
