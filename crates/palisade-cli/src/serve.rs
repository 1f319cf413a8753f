//! `palisade serve`.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use palisade::{Error, ErrorKind, Result, Sandbox, units};
use palisade_fabric::{Journal, LocalScheduler, PrometheusSink, Rate, SchedulerOptions, SqliteJournal, TenantLimits};
use palisade_rpc::{ByKind, Ceiling, Limits, Listener, Plugins, Server, Service, ServiceOptions, Token};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Exit;
use crate::{Machine, backend_options, daemon, open_backend, output, plugin};

/// Most bytes of the file that keeps the tasks.
const JOURNAL_BYTES_MAX: u64 = 16 << 30;
/// Largest file with a token.
const TOKEN_FILE_BYTES_MAX: u64 = 4096;
/// Largest file with a ceiling.
const CEILING_BYTES_MAX: u64 = 1 << 20;
/// Time that requests under way get when the daemon ends.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Directory for tasks and plugins [default: `palisade/daemon` in the data directory of this user]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Unix socket to listen on [default: `socket` in the directory for data]
    #[arg(long, value_name = "PATH", env = "PALISADE_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
    /// Also listen on this TCP address, for clients that show the token. Nothing is encrypted
    #[arg(long, value_name = "ADDRESS:PORT", requires = "token_file")]
    listen: Option<SocketAddr>,
    /// File with the token for clients on TCP, which others may not read
    #[arg(long, value_name = "FILE", requires = "listen")]
    token_file: Option<PathBuf>,
    /// The most that any plugin, agent or task may be given, as TOML: see the runbook [default: no directory, interpreter or
    /// child process, and a bound on every quota]
    #[arg(long, value_name = "FILE")]
    ceiling: Option<PathBuf>,
    /// List an interpreter by its path, for policies that name it; may be given several times
    #[arg(long, value_name = "PATH")]
    interpreter: Vec<PathBuf>,
    /// Let directories on FUSE or virtiofs be granted: whoever serves them may let guests, and the daemon, wait
    #[arg(long)]
    fuse: bool,
    /// Start although the journal is damaged, with what is provably left of it; the damaged files are kept beside it
    #[arg(long, conflicts_with = "ephemeral")]
    recover: bool,
    /// Keep tasks and plugins in memory only
    #[arg(long)]
    ephemeral: bool,
    /// Threads that run guests [default: one for each processor]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Tasks run at once
    #[arg(long, value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tasks: u32,
    /// Tasks of one tenant run at once, unless `palisade tenants set` says otherwise
    #[arg(long, value_name = "COUNT", help_heading = "Every tenant")]
    tenant_running_max: Option<u32>,
    /// Tasks of one tenant without an outcome; submissions beyond it are refused
    #[arg(long, value_name = "COUNT", help_heading = "Every tenant")]
    tenant_tasks_max: Option<usize>,
    /// Submissions of one tenant; those above it are refused. `10/s`, `90/m`, `5/h`; `10/s:50` allows 50 at once
    #[arg(long, value_name = "RATE", help_heading = "Every tenant")]
    tenant_submit_rate: Option<Rate>,
    /// Tasks of one tenant started; those above it wait
    #[arg(long, value_name = "RATE", help_heading = "Every tenant")]
    tenant_start_rate: Option<Rate>,
    /// Tenants with metrics of their own, in the order in which they turn up; the rest share those of `other`
    #[arg(long, value_name = "COUNT", default_value = "10", value_parser = clap::value_parser!(u16).range(0..=1000))]
    tenant_labels: u16,
    /// Backend to use, for the artifacts it loads; may be given several times [default: wasmtime, process]
    #[arg(long, value_name = "NAME")]
    backend: Vec<String>,
    /// Time that running tasks get to end when the daemon is told to
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::parse_duration)]
    grace: Duration,
    /// How the log is written, on standard error
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log: LogFormat,
    /// What is logged: this and what is worse; tasks are in `debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    log_level: String,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, each with its spans.
    Json,
}

/// Writes the log from now on, for the rest of the process.
fn log(format: LogFormat, level: &str) {
    // All levels there are, by the parser.
    let level = level.parse().unwrap_or(LevelFilter::INFO);
    // What engines say is for their own developers.
    let ours = Targets::new().with_target("palisade", level);
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Escaping(Vec::new())).with_ansi(false);
    let registry = tracing_subscriber::registry();
    // Fails when somebody logs already, which is as good.
    let _ = match format {
        LogFormat::Text => registry.with(lines.with_filter(ours)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(ours)).try_init(),
    };
}

/// Writes a line of the log as a whole, with what is no text escaped: fields hold what clients and guests chose.
struct Escaping(Vec<u8>);

impl std::io::Write for Escaping {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Escaping {
    fn drop(&mut self) {
        // That nobody reads the log changes nothing for the daemon.
        let line = palisade::text::escaped(&String::from_utf8_lossy(&self.0));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }
}

/// Says what everybody wants to know who started a daemon.
fn say(format: LogFormat, message: &str) {
    match format {
        LogFormat::Text => output::line("palisade:", message),
        LogFormat::Json => tracing::info!("{message}"),
    }
}

/// Says what somebody may have to look after.
fn warn(format: LogFormat, message: &str) {
    match format {
        LogFormat::Text => output::note(message),
        LogFormat::Json => tracing::warn!("{message}"),
    }
}

pub(crate) fn run(options: &Serve) -> Result<Exit> {
    log(options.log, &options.log_level);
    // Whatever is made from here on is its owner's only.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = options.workers {
        runtime.worker_threads(usize::from(workers));
    }
    let runtime = runtime.enable_all().build().map_err(|error| io_error("the daemon gets no threads", error))?;
    let ended = runtime.block_on(serve(options));
    runtime.shutdown_background();
    ended
}

async fn serve(options: &Serve) -> Result<Exit> {
    // Before anything is kept or promised: a signal must find somebody who hears it.
    let mut signals = Signals::new().map_err(|error| io_error("signals cannot be listened to", error))?;
    let data = options.data.clone().map_or_else(daemon::data_directory, Ok)?;
    let socket = options.socket.clone().unwrap_or_else(|| daemon::socket_in(&data));
    if !options.ephemeral || options.socket.is_none() {
        make_private(&data)?;
    }
    let token = options.token_file.as_deref().map(read_token).transpose()?;

    let metrics = Arc::new(PrometheusSink::new());
    let mut scheduler = SchedulerOptions::default();
    scheduler.metrics = Arc::clone(&metrics) as _;
    scheduler.tenant_labels_max = usize::from(options.tenant_labels);
    scheduler.limits.tenant = TenantLimits {
        weight: None,
        running_max: options.tenant_running_max,
        tasks_max: options.tenant_tasks_max,
        submit_rate: options.tenant_submit_rate,
        start_rate: options.tenant_start_rate,
    };
    let plugins = if options.ephemeral {
        Plugins::in_memory()
    } else {
        // It locks its file, so that no second daemon comes further than this.
        let open = if options.recover { SqliteJournal::recover } else { SqliteJournal::new };
        let journal: Box<dyn Journal> = Box::new(open(data.join("tasks.sqlite"), JOURNAL_BYTES_MAX)?);
        scheduler.journal = Some(journal);
        Plugins::open(data.join("plugins"))?
    };
    let scheduler = Arc::new(LocalScheduler::open(scheduler)?);
    let machine = Machine { interpreters: options.interpreter.clone(), fuse: options.fuse };
    let backends = ByKind::new(backends(&options.backend, options.log, &machine)?)?;
    let mut own = vec![data.clone(), socket.clone()];
    own.extend(options.token_file.clone());
    if let Some(cache) = backend_options(true, &machine).cache {
        own.extend([cache.directory, cache.key_file]);
    }
    let ceiling = options.ceiling.as_deref().map_or_else(|| Ok(Ceiling::default()), read_ceiling)?.protect(own);
    let mut listeners = vec![Listener::unix(&socket).await?];
    if let (Some(address), Some(token)) = (options.listen, token) {
        listeners.push(Listener::tcp(address, token).await?);
        if !address.ip().is_loopback() {
            warn(options.log, "what goes over TCP is not encrypted; use a trusted network or a proxy that encrypts");
        }
    }
    let mut service = ServiceOptions::new(Arc::clone(&scheduler), backends, plugins, metrics);
    service.events = scheduler.events();
    service.durable = !options.ephemeral;
    service.tasks_max = options.tasks as usize;
    service.ceiling = ceiling;
    let service = Service::start(service).await?;
    let names: Vec<_> = listeners.iter().map(Listener::name).collect();
    let server = Server::start(Arc::clone(&service), listeners, Limits::default());
    say(options.log, &format!("ready on {}", names.join(" and ")));

    let signal = signals.next().await;
    say(options.log, &format!("{signal}: ending the tasks that run; once more stops them"));
    let closed = {
        let mut closing = std::pin::pin!(service.close(options.grace));
        tokio::select! {
            closed = &mut closing => Some(closed),
            _ = signals.next() => None,
        }
    };
    server.stop(if closed.is_some() { ANSWER_GRACE } else { Duration::ZERO }).await;
    for (agent, error) in closed.iter().flat_map(|closed| &closed.unsaved) {
        warn(options.log, &format!("the memory of agent {agent} is not saved: {error}"));
    }
    let (stats, fate) = (palisade::Scheduler::stats(&*scheduler), if options.ephemeral { "lost" } else { "kept" });
    let waiting = stats.queued + stats.delayed + stats.running;
    say(options.log, &format!("ended; {waiting} tasks without an outcome are {fate}"));
    Ok(if closed.is_some_and(|closed| closed.in_time) { Exit::Success } else { Exit::Cancelled })
}

/// What tells a daemon to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "terminated",
            _ = self.interrupt.recv() => "interrupted",
        }
    }
}

/// The named backends, or those that are linked. One that nobody named and that this machine cannot have is left out,
/// with a note: what needs it is refused.
fn backends(names: &[String], log: LogFormat, machine: &Machine) -> Result<Vec<Arc<dyn Sandbox>>> {
    if !names.is_empty() {
        return names.iter().map(|name| open_backend(name, true, machine)).collect();
    }
    let mut opened = Vec::new();
    let mut last = None;
    for name in ["wasmtime", "process"] {
        match open_backend(name, true, machine) {
            Ok(backend) => opened.push(backend),
            Err(error) => {
                warn(log, &format!("without backend {name}: {error}"));
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if opened.is_empty() => Err(error),
        _ => Ok(opened),
    }
}

/// Makes the directory of the daemon's own, or takes one that others cannot look into: in it lie the inputs and outcomes of
/// everybody's tasks.
fn make_private(directory: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    let failed = |error| io_error(&format!("cannot make the directory {}", directory.display()), error);
    let found = made.and_then(|()| fs::metadata(directory)).map_err(failed)?;
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let message = format!("others may look into or write the directory {}", directory.display());
        return Err(Error::new(ErrorKind::InvalidInput, "serve", message)
            .with_context("mode", format!("{mode:03o}"))
            .with_help(format!("chmod 700 {}", directory.display())));
    }
    Ok(())
}

/// Reads the file that says what may be given at most.
fn read_ceiling(path: &Path) -> Result<Ceiling> {
    let bytes = plugin::read_file(path, "read the ceiling", CEILING_BYTES_MAX)?;
    Ceiling::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| error.with_context("file", path.display()))
}

/// Reads the token, which is worth nothing where everybody on this machine can read or replace it. Its group may read it.
fn read_token(path: &Path) -> Result<Token> {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o027 != 0
    {
        let mode = metadata.permissions().mode() & 0o777;
        let message = format!("others may read or replace the token in {}", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, "read token", message)
            .with_context("mode", format!("{mode:03o}"))
            .with_help(format!("chmod 600 {}, and make a new token if somebody may have read it", path.display())));
    }
    let bytes = plugin::read_file(path, "read token", TOKEN_FILE_BYTES_MAX)?;
    Token::new(&String::from_utf8_lossy(&bytes))
}

fn io_error(message: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, "serve", message.to_owned()).with_source(error)
}
