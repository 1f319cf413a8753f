//! The `palisade` command as a library: run code you don't trust, under limits you can prove.
//!
//! All of the command works with whatever backends are linked. So a program with a backend of your own is two lines:
//!
//! ```ignore
//! use my_backend as _; // links it, and so registers it
//!
//! fn main() -> std::process::ExitCode {
//!     palisade_cli::main()
//! }
//! ```
//!
//! Without default features no backend of Palisade's own is linked besides:
//!
//! ```toml
//! [dependencies]
//! palisade-cli = { version = "0.1", default-features = false }
//! ```
#![forbid(unsafe_code)]

mod agents;
mod backends;
mod certify;
mod components;
mod daemon;
mod doctor;
mod events;
mod exit;
mod inspect;
mod output;
mod plugin;
mod plugins;
mod policy;
mod run;
mod serve;
mod stdin;
mod table;
mod tasks;
mod tenants;
mod top;

use std::process::ExitCode;

use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use clap::{CommandFactory, Parser, Subcommand};
use palisade::{Artifact, ArtifactKind, BackendOptions, BackendRegistration, Error, ErrorKind};

use crate::exit::Exit;

/// Run code you don't trust, under limits you can prove.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, after_help = exit::HELP, subcommand_required = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a plugin under limits.
    Run(Box<run::Run>),
    /// Show what a plugin imports, exports and needs.
    Inspect(inspect::Inspect),
    /// Show the linked backends and what they can enforce.
    Backends(backends::Backends),
    /// Try out what this machine can and cannot enforce.
    Doctor(doctor::Doctor),
    /// Run the conformance suite on backends, or verify a certificate.
    Certify(certify::Certify),
    /// Run the daemon, which takes tasks and runs them.
    Serve(serve::Serve),
    /// Give the daemon a task.
    Submit(Box<tasks::Submit>),
    /// Show where a task is.
    Status(tasks::OneTask),
    /// Wait for a task, and end as it did.
    Wait(tasks::Wait),
    /// Cancel a task.
    Cancel(tasks::OneTask),
    /// List the daemon's tasks, latest first.
    Ls(tasks::List),
    /// Show the daemon's plugins, or remove one.
    Plugins(plugins::Plugins),
    /// Show what happens in the daemon, as it happens.
    Events(events::Events),
    /// Show what the daemon does, live.
    Top(top::Top),
    /// Show the tasks that were given up, or try one again.
    Dlq(tasks::DeadLetters),
    /// Show the daemon's agents, make one anew or end it.
    Agents(agents::Agents),
    /// Show the daemon's tenants, or set what one may do.
    Tenants(tenants::Tenants),
}

/// All of the command: reads the arguments of this process and does what they say. The exit code is what the process is to end
/// with.
///
/// To be called first thing in a program's `main`: this process may be one that a backend started for work of its own, from
/// the program it is linked into.
pub fn main() -> ExitCode {
    // Before anything else takes memory: this may be the compiler of another `palisade`.
    if let Some(done) = palisade::backends().into_iter().find_map(|registration| registration.helper?()) {
        return done;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::HostError } else { Exit::Success };
            // Help and version come this way too, and are no errors.
            if exit == Exit::Success || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
                let _ = error.print();
            } else {
                output::error_line(&one_line(&error.to_string()));
            }
            return exit.into();
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::error_line(&format!("cannot start: {error}"));
            return Exit::HostError.into();
        }
    };
    let (json, result) = match arguments.command {
        Command::Run(run) => (run.json, runtime.block_on(run::run(*run))),
        Command::Inspect(inspect) => (inspect.json, runtime.block_on(inspect::run(inspect))),
        Command::Backends(backends) => (backends.json, backends::run(&backends)),
        Command::Doctor(doctor) => (doctor.json, doctor::run(&doctor)),
        Command::Certify(certify) => (certify.json, certify::run(&certify)),
        Command::Serve(serve) => (false, serve::run(&serve)),
        Command::Submit(submit) => (submit.json(), runtime.block_on(tasks::submit(*submit))),
        Command::Status(task) => (task.output.json, runtime.block_on(tasks::status(task))),
        Command::Wait(wait) => (wait.output.json, runtime.block_on(tasks::wait(wait))),
        Command::Cancel(task) => (task.output.json, runtime.block_on(tasks::cancel(task))),
        Command::Ls(list) => (list.json, runtime.block_on(tasks::list(list))),
        Command::Plugins(plugins) => (plugins.json, runtime.block_on(plugins::run(plugins))),
        Command::Events(events) => (events.json, runtime.block_on(events::run(events))),
        Command::Top(top) => (top.json, runtime.block_on(top::run(top))),
        Command::Dlq(letters) => (letters.json(), runtime.block_on(tasks::dead_letters(letters))),
        Command::Agents(agents) => (agents.json, runtime.block_on(agents::agents(agents))),
        Command::Tenants(tenants) => (tenants.json, runtime.block_on(tenants::run(tenants))),
    };
    // A thread that still waits for standard input must not hold the end up.
    runtime.shutdown_background();
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = Exit::of_error(&error);
            output::error(&error, exit, json);
            exit.into()
        }
    }
}

/// What was wrong with a command line, and what to do: of the parser's text, its first paragraph with its first tip, or
/// with the usage when it has none.
fn one_line(text: &str) -> String {
    let mut paragraphs = text.split("\n\n").map(str::trim);
    let wrong = paragraphs.next().unwrap_or_default().trim_start_matches("error: ");
    let next = paragraphs.find_map(|paragraph| {
        let line = paragraph.lines().next().unwrap_or_default();
        line.strip_prefix("tip: ").or_else(|| line.starts_with("Usage: ").then_some(line))
    });
    let commands = Arguments::command();
    let commands: Vec<_> = commands.get_subcommands().map(|command| command.get_name()).collect();
    match next {
        Some(next) if wrong.starts_with("unrecognized subcommand") && next.starts_with("Usage") => {
            format!("{wrong}; commands: {}", commands.join(", "))
        }
        Some(next) => format!("{wrong}; {}", next.replacen("Usage", "usage", 1)),
        None => format!("{wrong}; see `palisade --help`"),
    }
}

/// What the person at the command line lets policies use of this machine, which no policy can take by itself.
#[derive(Debug, Default)]
struct Machine {
    /// Interpreters by their paths.
    interpreters: Vec<std::path::PathBuf>,
    /// Directories on FUSE.
    fuse: bool,
}

/// Options of a backend, with the cache where this user keeps such things. Artifacts are compiled by this program in a
/// process of its own.
fn backend_options(cache: bool, machine: &Machine) -> BackendOptions {
    let mut options = BackendOptions::new().compiler("/proc/self/exe").fuse(machine.fuse);
    options.interpreters.clone_from(&machine.interpreters);
    // The key is data, so that clearing caches does not touch it.
    match (cache, home_directory("XDG_CACHE_HOME", ".cache"), home_directory("XDG_DATA_HOME", ".local/share")) {
        (true, Some(cache), Some(data)) => options.cache(cache.join("palisade"), data.join("palisade/cache.key")),
        _ => options,
    }
}

/// A directory of this user, by the XDG base directory specification.
fn home_directory(variable: &str, under_home: &str) -> Option<std::path::PathBuf> {
    let set = std::env::var_os(variable).filter(|value| !value.is_empty()).map(std::path::PathBuf::from);
    set.filter(|path| path.is_absolute())
        .or_else(|| std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(under_home)))
}

/// Taken before others that load the same, where nobody names a backend.
const PREFERRED: &str = "wasmtime";

/// The backend for artifacts of `kind` when the person names none.
fn preferred(kind: ArtifactKind) -> Option<&'static BackendRegistration> {
    let loads = |registration: &&BackendRegistration| registration.loads.contains(&kind);
    palisade::backends().into_iter().filter(loads).min_by_key(|registration| registration.name != PREFERRED)
}

/// The name of the backend for an artifact when the person names none.
fn backend_for(artifact: &Artifact) -> Result<&'static str, Error> {
    let kind = artifact.kind();
    preferred(kind).map(|registration| registration.name).ok_or_else(|| {
        let linked: Vec<_> = palisade::backends().into_iter().map(|registration| registration.name).collect();
        let help = match linked[..] {
            [] => "linked backends: none; link one with `use my_backend as _;`, or build `palisade-cli` with the feature of one"
                .to_owned(),
            _ => format!("linked backends: {}; choose one with `--backend`", linked.join(", ")),
        };
        let message = format!("no backend of this program loads artifacts of kind `{kind}`");
        Error::new(ErrorKind::NotFound, "open", message).with_help(help)
    })
}

/// Opens a backend; a cache that cannot be used costs time, not the run.
fn open_backend(name: &str, cache: bool, machine: &Machine) -> Result<std::sync::Arc<dyn palisade::Sandbox>, Error> {
    let options = backend_options(cache, machine);
    match palisade::open(name, &options) {
        Err(error) if options.cache.is_some() && error.kind() == ErrorKind::Io => {
            let source = std::error::Error::source(&error).map(|source| format!(" ({source})")).unwrap_or_default();
            output::note(&format!("{}{source}; going on without it", error.message()));
            palisade::open(name, &backend_options(false, machine))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
