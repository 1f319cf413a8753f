//! `palisade doctor`.

use clap::Args;
use palisade::{FindingStatus, Result};
use serde_json::json;

use crate::exit::Exit;
use crate::table::table;
use crate::{Machine, backend_options, output};

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Lets every backend try out this machine. The exit code is 0 when nothing is missing, else 1.
pub(crate) fn run(options: &Doctor) -> Result<Exit> {
    let options_of_backends = backend_options(true, &Machine::default());
    let all: Vec<_> = palisade::backends()
        .into_iter()
        .map(|registration| (registration.name, (registration.probe)(&options_of_backends)))
        .collect();
    let worst = all.iter().flat_map(|(_, findings)| findings).map(|finding| finding.status).max();
    let exit = if worst == Some(FindingStatus::Missing) { Exit::Guest(1) } else { Exit::Success };
    if options.json {
        let backends: serde_json::Map<_, _> =
            all.iter().map(|(name, findings)| ((*name).to_owned(), json!(findings))).collect();
        output::print_json(&json!({ "backends": backends, "worst": worst }));
        return Ok(exit);
    }
    for (name, findings) in &all {
        let rows: Vec<_> = findings
            .iter()
            .map(|finding| {
                let status = match finding.status {
                    FindingStatus::Ok => "ok",
                    FindingStatus::Degraded => "degraded",
                    FindingStatus::Missing => "MISSING",
                };
                let detail = match finding.advice.is_empty() {
                    true => finding.detail.clone(),
                    false => format!("{}; {}", finding.detail, finding.advice),
                };
                vec![status.to_owned(), finding.subject.clone(), detail]
            })
            .collect();
        output::print(&format!("Backend {name}\n{}\n", table(&["STATUS", "WHAT WAS TRIED", "WHAT WAS SEEN"], &rows)));
    }
    output::print(match worst {
        Some(FindingStatus::Missing) => "Something is missing; what needs it will be refused.\n",
        Some(FindingStatus::Degraded) => "Every limit holds on this machine; something could be faster.\n",
        Some(FindingStatus::Ok) => "Every limit holds on this machine.\n",
        None => "No backend is linked into this program; `use my_backend as _;` links one.\n",
    });
    Ok(exit)
}
