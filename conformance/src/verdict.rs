//! What a check finds out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a check finds out. Ordered: of several, the worst counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The attack works when allowed, is stopped when not, and leaves nothing behind.
    Pass,
    /// The backend does not declare what the check needs, and properly refuses it.
    Unsupported,
    /// A fact of this machine, known before the run, stands in the way.
    Blocked,
    /// The check observed nothing.
    Vacuous,
    /// The check itself did not work: its baseline failed, or it crashed or hung.
    Broken,
    /// The requirement is not met.
    Fail,
}

impl Verdict {
    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Unsupported => "unsupported",
            Verdict::Blocked => "blocked",
            Verdict::Vacuous => "vacuous",
            Verdict::Broken => "broken",
            Verdict::Fail => "fail",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
