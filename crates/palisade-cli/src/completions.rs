//! `palisade completions`: what makes a shell complete the command's arguments, made from the arguments themselves.

use clap::CommandFactory;
use clap_complete::Shell;
use palisade::Error;
use serde_json::json;

use crate::exit::Exit;
use crate::{Arguments, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "For bash, in ~/.bashrc:\n    source <(palisade completions bash)")]
pub(crate) struct Completions {
    /// Which shell
    shell: Shell,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(options: &Completions) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Arguments::command(), "palisade", &mut script);
    let script = String::from_utf8_lossy(&script);
    if options.json {
        output::print_json(&json!({ "shell": options.shell.to_string(), "script": script }));
    } else {
        output::print(&script);
    }
    Ok(Exit::Success)
}
