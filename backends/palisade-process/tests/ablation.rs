//! What each protection is for: leaves them out, and shows which checks notice.
//!
//! ```sh
//! PALISADE_ABLATION=1 cargo test -p palisade-process --test ablation
//! ```

use std::process::ExitCode;
use std::sync::Arc;

use palisade_conformance::{Protection, Subject, ablation, probe};
use palisade_core::BackendOptions;
use palisade_process::ProcessSandbox;

const PROTECTIONS: &[Protection] = &[
    Protection { name: "seccomp", behind: &[] },
    Protection { name: "limits", behind: &[] },
    Protection { name: "uts-namespace", behind: &[] },
    Protection { name: "descriptors", behind: &[] },
    Protection { name: "read-only", behind: &["landlock"] },
    Protection { name: "landlock", behind: &["read-only"] },
    Protection { name: "capabilities", behind: &["seccomp"] },
    Protection { name: "ipc-namespace", behind: &["seccomp"] },
    Protection { name: "network-namespace", behind: &["seccomp", "landlock"] },
    Protection { name: "pid-namespace", behind: &["seccomp", "landlock"] },
];

fn main() -> ExitCode {
    let subject = Subject {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        open: || Ok(Arc::new(ProcessSandbox::open(&BackendOptions::new())?)),
        probe: probe::native,
        expectations: "version = 1",
    };
    ablation(subject, "process", PROTECTIONS, cfg!(palisade_ablation))
}
