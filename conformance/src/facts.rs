//! What the machine and the build are.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What the machine and the build are: a result holds for these, and no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Name of the operating system.
    pub os: String,
    /// Release of its kernel.
    pub kernel: String,
    /// Architecture of the processor.
    pub arch: String,
    /// User that ran the suite.
    pub uid: u32,
    /// Processors it could use.
    pub cores: usize,
    /// The engine underneath the backend, and its version.
    pub engine: String,
    /// Compiler of the suite.
    pub rustc: String,
    /// `debug` or `release`.
    pub build: String,
    /// Whether a protection of the backend was left out of this build on purpose. Such a build certifies nothing.
    pub ablation: bool,
}

impl Facts {
    /// The facts of this process, with `engine` underneath its backend.
    pub fn gather(engine: &str) -> Facts {
        Facts {
            os: std::env::consts::OS.to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            uid: rustix::process::getuid().as_raw(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            engine: engine.to_owned(),
            rustc: env!("PALISADE_RUSTC").to_owned(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            ablation: cfg!(palisade_ablation),
        }
    }

    /// Names and values, for people.
    pub fn list(&self) -> Vec<(&'static str, String)> {
        vec![
            ("os", self.os.clone()),
            ("kernel", self.kernel.clone()),
            ("arch", self.arch.clone()),
            ("uid", self.uid.to_string()),
            ("cores", self.cores.to_string()),
            ("engine", self.engine.clone()),
            ("rustc", self.rustc.clone()),
            ("build", self.build.clone()),
            ("ablation", self.ablation.to_string()),
        ]
    }
}

/// Now, as `2026-01-31T23:59:59Z`.
pub(crate) fn now() -> String {
    date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// Seconds since 1970 as a date of the Gregorian calendar, in UTC.
fn date(seconds: u64) -> String {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut days = seconds / 86_400;
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_798_761_599), "2026-12-31T23:59:59Z");
        assert_eq!(date(1_798_761_600), "2027-01-01T00:00:00Z");
    }

    #[test]
    fn facts_are_known() {
        let facts = Facts::gather("engine 1");
        assert!(facts.rustc.starts_with("rustc ") && !facts.kernel.is_empty() && facts.cores > 0, "{facts:?}");
        assert!(facts.list().iter().all(|(_, value)| !value.is_empty()));
    }
}
