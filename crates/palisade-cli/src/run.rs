//! `palisade run`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use clap::Args;
use palisade::{
    Artifact, Call, CancelToken, Error, ErrorKind, Execution, HostFunctions, Input, Module, Outcome, OutputSink,
    OutputStream, Policy, PreparedExt, Quota, Resource, Result,
};
use serde_json::{Map, Value, json};

use crate::exit::Exit;
use crate::policy::PolicyOptions;
use crate::{Machine, backend_for, open_backend, output, plugin, stdin};

/// Largest input given as a file.
const INPUT_BYTES_MAX: u64 = 1 << 30;
/// Time that an interrupted command gives the reader of its output.
const GRACE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The plugin: a `.wasm` module or its text form in a `.wat` file, a native executable, a `.so` library, or a script
    plugin: PathBuf,
    /// Arguments for the plugin, after `--`
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
    /// Input: a text, `@FILE`, or `-` for standard input
    #[arg(short, long, value_name = "TEXT|@FILE|-", default_value = "-", allow_hyphen_values = true)]
    input: String,
    /// Entry point to call
    #[arg(long, value_name = "NAME", default_value = Call::DEFAULT_ENTRY)]
    entry: String,
    /// Backend to run it with [default: wasmtime for Wasm, process for native code and scripts]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Print one JSON object: outcome, usage, quota and what the plugin wrote
    #[arg(long)]
    pub(crate) json: bool,
    /// Do not report usage on standard error
    #[arg(short, long)]
    quiet: bool,
    /// Do not keep or use compiled code on disk
    #[arg(long)]
    no_cache: bool,
    /// Let directories on FUSE or virtiofs be granted: whoever serves them may let the guest, and this command, wait
    #[arg(long)]
    fuse: bool,
    #[command(flatten)]
    policy: PolicyOptions,
}

pub(crate) async fn run(options: Run) -> Result<Exit> {
    let artifact = plugin::read(&options.plugin, options.policy.names_interpreter())?;
    let policy = options.policy.policy(artifact.kind())?;
    let input = input(&options.input)?;
    let machine = Machine { interpreters: options.policy.listed_interpreters(), fuse: options.fuse };
    let backend = options.backend.as_deref().unwrap_or(backend_for(&artifact));
    let sandbox = open_backend(backend, !options.no_cache, &machine)?;
    let module = {
        let _spinner = Spinner::start(&format!("loading {}", artifact.name()));
        sandbox.load(artifact.clone()).await?
    };
    if !options.quiet {
        module.info().notes.iter().for_each(|note| output::note(note));
    }
    // This command offers no host functions; a plugin that calls one is denied, by name.
    let prepared = module.prepare(policy, HostFunctions::new())?;

    let cancel = CancelToken::new();
    let forward = output::Forward::start(cancel.clone())
        .map_err(|error| Error::new(ErrorKind::Io, "run", "no thread to write the output").with_source(error))?;
    let forward = Arc::new(forward);
    let mut call = Call::new().entry(options.entry).arguments(options.arguments).input(input).cancel(cancel.clone());
    if !options.json {
        call = call.sink(Arc::clone(&forward) as _);
    }
    let mut running = std::pin::pin!(prepared.run(call));
    let mut interrupted = false;
    let execution = tokio::select! {
        // The signal first: it must be listened to before the guest does anything.
        biased;
        _ = tokio::signal::ctrl_c() => {
            interrupted = true;
            cancel.cancel();
            running.await
        }
        execution = &mut running => execution,
    }?;
    let exit = Exit::of_outcome(&execution.outcome);
    if options.json {
        let report = report(&execution, prepared.policy(), &artifact, &*module, exit);
        forward.write(OutputStream::Output, format!("{report}\n").as_bytes());
    }
    let exit = match (exit, delivered(&forward, interrupted).await) {
        // A guest that ended well before anybody noticed that its output went nowhere did not end well.
        (Exit::Success | Exit::Cancelled, Err(error)) => match error.kind() {
            io::ErrorKind::BrokenPipe => Exit::BrokenPipe,
            io::ErrorKind::Interrupted => Exit::Cancelled,
            _ => {
                output::error_line(&format!("cannot write the output: {error}"));
                Exit::HostError
            }
        },
        (exit, _) => exit,
    };
    if !options.json && !options.quiet {
        print_usage(&execution, prepared.policy());
    }
    Ok(exit)
}

/// Waits until everything is written. A person who interrupts does not wait for a reader that does not read.
async fn delivered(forward: &output::Forward, interrupted: bool) -> io::Result<()> {
    let given_up = async {
        if interrupted {
            tokio::time::sleep(GRACE).await;
        } else {
            // When signals cannot be listened to, the system's own handling of them is still in place.
            let _ = tokio::signal::ctrl_c().await;
        }
    };
    tokio::select! {
        biased;
        written = forward.finish() => written,
        () = given_up => Err(io::ErrorKind::Interrupted.into()),
    }
}

fn input(text: &str) -> Result<Input> {
    match (text, text.strip_prefix('@')) {
        ("-", _) => Ok(stdin::input()),
        (_, Some(path)) => plugin::read_file(path.as_ref(), "read input", INPUT_BYTES_MAX).map(Input::from),
        (text, None) => Ok(Input::from(text.to_owned())),
    }
}

/// The JSON object of `--json`.
fn report(execution: &Execution, policy: &Policy, artifact: &Artifact, module: &dyn Module, exit: Exit) -> Value {
    let mut report = Map::new();
    report.insert("outcome".into(), json!(execution.outcome));
    report.insert("usage".into(), json!(execution.usage));
    report.insert("quota".into(), json!(policy.quota));
    report.insert("exit_code".into(), json!(exit.code()));
    insert_bytes(&mut report, "output", &execution.output);
    insert_bytes(&mut report, "error", &execution.error);
    report.insert("log".into(), json!(execution.log));
    if !execution.isolation.is_empty() {
        report.insert("isolation".into(), json!(execution.isolation));
    }
    let info = module.info();
    report.insert(
        "module".into(),
        json!({
            "name": info.name,
            "hash": artifact.hash(),
            "cached": info.cached,
            "load_time_ns": info.load_time.as_nanos() as u64,
            "notes": info.notes,
        }),
    );
    Value::Object(report)
}

/// Text as text; other bytes under the name with `_base64`.
fn insert_bytes(report: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => report.insert(name.into(), json!(text)),
        Err(_) => {
            let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
            report.insert(format!("{name}_base64"), json!(encoded))
        }
    };
}

fn print_usage(execution: &Execution, policy: &Policy) {
    let colour = match &execution.outcome {
        Outcome::Completed => "32",
        Outcome::Failed { .. } => "33",
        _ => "31",
    };
    let outcome = output::paint(colour, &crate::table::printable(&execution.outcome.to_string()));
    output::line(&format!("palisade: {outcome} |"), &usage_line(execution, &policy.quota));
}

/// What was used of each quota, on one line. Quotas of which nothing was used are left out.
fn usage_line(execution: &Execution, quota: &Quota) -> String {
    let mut parts = Vec::new();
    for resource in Resource::ALL.iter().copied() {
        let used = execution.usage.get(resource);
        let shown = resource.display(used);
        let name = resource.as_str().trim_end_matches("_bytes").replace('_', " ");
        match quota.get(resource) {
            _ if used == 0 => {}
            Some(limit) => {
                parts.push(format!("{name} {shown} of {} ({})", resource.display(limit), percent(used, limit)))
            }
            None => parts.push(format!("{name} {shown}")),
        }
    }
    parts.join(", ")
}

fn percent(used: u64, limit: u64) -> String {
    match used as f64 / limit as f64 * 100.0 {
        percent if !percent.is_finite() => "over".to_owned(),
        percent if percent < 0.1 => "<0.1%".to_owned(),
        percent if percent < 10.0 => format!("{percent:.1}%"),
        percent => format!("{percent:.0}%"),
    }
}

/// A sign of life while a large module is compiled; nothing where standard error is not a terminal.
struct Spinner(indicatif::ProgressBar);

impl Spinner {
    fn start(message: &str) -> Spinner {
        let spinner = indicatif::ProgressBar::new_spinner().with_message(crate::table::printable(message));
        // Quick loads show nothing.
        spinner.enable_steady_tick(Duration::from_millis(120));
        Spinner(spinner)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade::Usage;

    #[test]
    fn usage_is_shown_against_its_quota() {
        let mut usage = Usage::default();
        usage.wall_time = Duration::from_millis(500);
        usage.memory_peak_bytes = 1 << 20;
        usage.fuel = 1_234_567;
        let quota =
            Quota { wall_time: Some(Duration::from_secs(2)), memory_bytes: Some(64 << 20), ..Quota::unlimited() };
        let line = usage_line(&Execution::new(Outcome::Completed, usage), &quota);
        assert_eq!(line, "wall time 500 ms of 2 s (25%), fuel 1.23 M, memory 1 MiB of 64 MiB (1.6%)");
    }

    #[test]
    fn bytes_that_are_no_text_are_encoded() {
        let mut report = Map::new();
        insert_bytes(&mut report, "output", b"\xff");
        insert_bytes(&mut report, "error", b"text");
        assert_eq!(Value::Object(report), json!({ "output_base64": "/w==", "error": "text" }));
    }
}
