//! `palisade man`: the command's manual pages, made from its arguments.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use palisade::{Error, ErrorKind};
use serde_json::json;

use crate::exit::Exit;
use crate::{Arguments, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "To read one: man -l DIR/palisade-run.1")]
pub(crate) struct Man {
    /// Where to write them: `palisade.1`, and one for each command
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(options: &Man) -> Result<Exit, Error> {
    let directory = &options.directory;
    let command = Arguments::command().disable_help_subcommand(true);
    let made = fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command.clone(), directory));
    made.map_err(|error| failed(directory, error))?;
    let mut pages = Vec::new();
    list(&command, "palisade", &mut pages);
    if options.json {
        output::print_json(&json!({ "pages": pages }));
    } else {
        output::note(&format!("{} pages are in {}", pages.len(), directory.display()));
    }
    Ok(Exit::Success)
}

/// The page of a command, and those of the commands below it.
fn list(command: &clap::Command, name: &str, pages: &mut Vec<String>) {
    pages.push(format!("{name}.1"));
    command.get_subcommands().for_each(|below| list(below, &format!("{name}-{}", below.get_name()), pages));
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "man", format!("cannot write {}", path.display()))
        .with_help("name a directory that can be written")
        .with_source(error)
}
