//! `palisade submit`, `status`, `wait`, `cancel`, `ls`, `dlq`: tasks of the daemon.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use palisade::{Bytes, Call, Error, ErrorKind, Policy, Priority, Result, TaskId, TaskState, units};
use palisade_rpc::{
    Base64, Client, InstallPlugin, ListDeadLetters, ListTasks, Nothing, SubmitTask, TaskInfo, TaskPage, TaskRef,
    WaitTask, unix_ms,
};
use serde_json::{Value, json};

use crate::daemon::Connection;
use crate::exit::Exit;
use crate::policy::PolicyOptions;
use crate::table::{printable, table};
use crate::{output, plugin};

/// Largest input: what a task may weigh with the daemon's default limits.
const INPUT_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// The plugin: a file, which is installed unless it is, or the name or hash of an installed one
    plugin: String,
    /// Arguments for the plugin, after `--`
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
    /// Input: a text, `@FILE`, or `-` for standard input
    #[arg(short, long, value_name = "TEXT|@FILE|-", default_value = "", allow_hyphen_values = true)]
    input: String,
    /// Entry point to call
    #[arg(long, value_name = "NAME", default_value = Call::DEFAULT_ENTRY)]
    entry: String,
    /// Urgency: critical, high, normal or low
    #[arg(long, value_name = "PRIORITY", default_value = "normal", value_parser = |text: &str| text.parse::<Priority>().map_err(|error| error.to_string()))]
    priority: Priority,
    /// On whose behalf; fairness is between tenants
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Submitting again under the same key gives the first task back
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Attempts in all
    #[arg(long, value_name = "COUNT", default_value = "3")]
    attempts: u32,
    /// Not run before this time has passed
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    delay: Option<Duration>,
    /// Given up when this time has passed
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    deadline: Option<Duration>,
    /// Label the task
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Wait for the outcome, as `palisade wait` does
    #[arg(short, long)]
    wait: bool,
    #[command(flatten)]
    output: TaskOutput,
    #[command(flatten)]
    policy: PolicyOptions,
}

/// What every command about a task has.
#[derive(Debug, Args)]
pub(crate) struct TaskOutput {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct OneTask {
    /// The task's id
    #[arg(value_parser = parse_task)]
    task: TaskId,
    #[command(flatten)]
    pub(crate) output: TaskOutput,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The task's id
    #[arg(value_parser = parse_task)]
    task: TaskId,
    /// Wait no longer than this [default: until the task has its outcome]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: TaskOutput,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only tasks in this state; may be given several times
    #[arg(long, value_name = "STATE", value_parser = clap::builder::PossibleValuesParser::new(TaskState::ALL.iter().map(|state| state.as_str())))]
    state: Vec<String>,
    /// Only tasks of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Only tasks of this plugin: its name or hash
    #[arg(long, value_name = "PLUGIN")]
    plugin: Option<String>,
    /// Only tasks before this one
    #[arg(long, value_name = "TASK", value_parser = parse_task)]
    before: Option<TaskId>,
    /// Most tasks to list
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    command: Option<DeadLettersCommand>,
    /// List only those after this task
    #[arg(long, value_name = "TASK", value_parser = parse_task)]
    after: Option<TaskId>,
    #[command(flatten)]
    output: TaskOutput,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// Try a task again from the beginning
    Requeue(OneTask),
}

impl Submit {
    pub(crate) fn json(&self) -> bool {
        self.output.json
    }
}

impl DeadLetters {
    pub(crate) fn json(&self) -> bool {
        match &self.command {
            Some(DeadLettersCommand::Requeue(task)) => task.output.json || self.output.json,
            None => self.output.json,
        }
    }
}

pub(crate) fn parse_task(text: &str) -> Result<TaskId, String> {
    serde_json::from_value(Value::from(text))
        .map_err(|_| "a task's id is a UUID, as `palisade submit` prints it".into())
}

pub(crate) async fn submit(options: Submit) -> Result<Exit> {
    let client = options.output.connection.client()?;
    let mut task = SubmitTask::new("");
    (task.plugin, task.policy) = plugin_and_policy(&options, &client).await?;
    task.input = Base64(input(&options.input)?);
    task.entry = Some(options.entry);
    task.arguments = options.arguments;
    task.priority = options.priority;
    task.tenant = options.tenant;
    task.idempotency_key = options.key;
    task.retry.attempts_max = options.attempts;
    let after = |delay: Duration| SystemTime::now().checked_add(delay).map_or(u64::MAX, unix_ms);
    task.not_before_unix_ms = options.delay.map(after);
    task.deadline_unix_ms = options.deadline.map(after);
    for label in &options.label {
        let Some((name, value)) = label.split_once('=') else {
            return Err(Error::new(ErrorKind::InvalidInput, "parse", format!("`--label {label}` has no `=`"))
                .with_help("write `--label NAME=VALUE`"));
        };
        task.labels.insert(name.to_owned(), value.to_owned());
    }
    let submission = client.tasks_submit(&task).await?;
    if options.wait {
        return ended(&client.outcome(submission.task).await?, options.output.json);
    }
    if options.output.json {
        output::print_json(&json!({ "task": submission.task, "duplicate": submission.duplicate }));
    } else {
        output::print(&format!("{}\n", submission.task));
    }
    Ok(Exit::Success)
}

/// Which plugin is meant, installed; and the policy, unless it is the plugin's own.
async fn plugin_and_policy(options: &Submit, client: &Client) -> Result<(String, Option<Policy>)> {
    let path = Path::new(&options.plugin);
    // A name has neither; so that a plugin's name does not change its meaning with the working directory.
    let is_path = options.plugin.contains(['/', '.']) && path.is_file();
    if !is_path {
        let found = client.plugins_list(&Nothing {}).await?.plugins;
        let hash = |plugin: &palisade_rpc::PluginInfo| plugin.plugin.to_string();
        let plugin = found.iter().find(|one| one.name == options.plugin || hash(one).starts_with(&options.plugin));
        let policy = match plugin {
            Some(plugin) if options.policy.is_given() => {
                Some(absolute(options.policy.policy_over(Some(plugin.policy.clone()), plugin.kind)?)?)
            }
            // Unknown ones are the daemon's to explain.
            _ => None,
        };
        return Ok((options.plugin.clone(), policy));
    }
    let artifact = plugin::read(path, options.policy.names_interpreter())?;
    let installed = client.plugins_list(&Nothing {}).await?.plugins;
    if let Some(plugin) = installed.iter().find(|one| one.plugin == artifact.hash()) {
        let policy = match options.policy.is_given() {
            true => Some(absolute(options.policy.policy_over(Some(plugin.policy.clone()), plugin.kind)?)?),
            false => None,
        };
        return Ok((artifact.hash().to_string(), policy));
    }
    let policy = absolute(options.policy.policy(artifact.kind())?)?;
    let plugin = InstallPlugin {
        name: artifact.name().to_owned(),
        kind: artifact.kind(),
        bytes: Base64(artifact.bytes().clone()),
        policy,
        agent: palisade_rpc::AgentSettings::default(),
    };
    Ok((client.plugins_install(&plugin).await?.plugin.to_string(), None))
}

/// The daemon has a working directory of its own.
fn absolute(mut policy: Policy) -> Result<Policy> {
    for directory in &mut policy.grants.directories {
        let host = std::path::absolute(&directory.host);
        directory.host = host.map_err(|error| {
            let message = format!("{} is no path", directory.host.display());
            Error::new(ErrorKind::InvalidPolicy, "parse", message).with_source(error)
        })?;
    }
    Ok(policy)
}

fn input(text: &str) -> Result<Bytes> {
    match (text, text.strip_prefix('@')) {
        ("-", _) => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| {
                Error::new(ErrorKind::Io, "read input", "cannot read standard input").with_source(error)
            })?;
            Ok(bytes.into())
        }
        (_, Some(path)) => plugin::read_file(&PathBuf::from(path), "read input", INPUT_BYTES_MAX).map(Bytes::from),
        (text, None) => Ok(Bytes::from(text.to_owned())),
    }
}

pub(crate) async fn status(options: OneTask) -> Result<Exit> {
    let info = options.output.connection.client()?.tasks_get(&TaskRef { task: options.task }).await?;
    if options.output.json {
        output::print_json(&report(&info));
    } else {
        output::print(&format!("{}\n", summary(&info)));
    }
    Ok(Exit::Success)
}

pub(crate) async fn wait(options: Wait) -> Result<Exit> {
    let client = options.output.connection.client()?;
    let Some(timeout) = options.timeout else {
        return ended(&client.outcome(options.task).await?, options.output.json);
    };
    let late = || {
        Error::new(ErrorKind::Exhausted, "wait", format!("the task has no outcome after {timeout:?}"))
            .with_help("wait longer, or look with `palisade status`")
    };
    // The first look is free: the daemon answers at once when the time is over.
    let waiting = async {
        if timeout.as_millis() < u128::from(WaitTask::TIMEOUT_MS_MAX) {
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(WaitTask::TIMEOUT_MS_MAX);
            return client.tasks_wait(&WaitTask { task: options.task, timeout_ms }).await;
        }
        tokio::time::timeout(timeout, client.outcome(options.task)).await.map_err(|_| late())?
    };
    let info = waiting.await?;
    if info.state.is_final() { ended(&info, options.output.json) } else { Err(late()) }
}

pub(crate) async fn cancel(options: OneTask) -> Result<Exit> {
    let answer = options.output.connection.client()?.tasks_cancel(&TaskRef { task: options.task }).await?;
    if options.output.json {
        output::print_json(&json!(answer));
    } else {
        output::print(&format!("{}\n", state_name(answer.state)));
    }
    Ok(Exit::Success)
}

pub(crate) async fn list(options: List) -> Result<Exit> {
    let client = options.connection.client()?;
    let limit = options.limit as usize;
    let mut query = ListTasks {
        states: TaskState::ALL
            .into_iter()
            .filter(|state| options.state.iter().any(|one| one == state.as_str()))
            .collect(),
        tenant: options.tenant,
        plugin: options.plugin,
        before: options.before,
        tasks_max: None,
    };
    let mut tasks = Vec::new();
    let next = loop {
        query.tasks_max = Some(limit - tasks.len());
        let page = client.tasks_list(&query).await?;
        tasks.extend(page.tasks);
        query.before = page.next;
        if query.before.is_none() || tasks.len() >= limit {
            break page.next;
        }
    };
    if options.json {
        output::print_json(&json!(TaskPage { tasks, next }));
        return Ok(Exit::Success);
    }
    let row = |info: &TaskInfo| {
        let state = state_name(info.state);
        let hash = format!("{:.12}", info.plugin.to_string());
        vec![info.task.to_string(), state, printable(&info.tenant), hash, printable(&ending(info))]
    };
    let rows: Vec<_> = tasks.iter().map(row).collect();
    output::print(&table(&["TASK", "STATE", "TENANT", "PLUGIN", "ENDED"], &rows));
    if let Some(next) = next {
        output::note(&format!("there may be more: `palisade ls --before {next}`"));
    }
    Ok(Exit::Success)
}

pub(crate) async fn dead_letters(options: DeadLetters) -> Result<Exit> {
    if let Some(DeadLettersCommand::Requeue(task)) = &options.command {
        let answer = task.output.connection.client()?.tasks_requeue(&TaskRef { task: task.task }).await?;
        if options.json() {
            output::print_json(&json!(answer));
        } else {
            output::print(&format!("{}\n", state_name(answer.state)));
        }
        return Ok(Exit::Success);
    }
    let client = options.output.connection.client()?;
    let list = client.tasks_dead_letters(&ListDeadLetters { after: options.after, tasks_max: None }).await?;
    if options.output.json {
        output::print_json(&json!(list));
        return Ok(Exit::Success);
    }
    let row = |info: &TaskInfo| {
        let attempts = (info.failures + info.lost).to_string();
        vec![info.task.to_string(), printable(&info.tenant), attempts, printable(&ending(info))]
    };
    let rows: Vec<_> = list.tasks.iter().map(row).collect();
    output::print(&table(&["TASK", "TENANT", "ATTEMPTS", "ENDED"], &rows));
    Ok(Exit::Success)
}

/// Shows how a task ended as `palisade run` does: the guest's output as it is, one line of summary, its exit code.
fn ended(info: &TaskInfo, json: bool) -> Result<Exit> {
    let exit = exit(info);
    if json {
        let mut report = report(info);
        report["exit_code"] = json!(exit.code());
        output::print_json(&report);
        return Ok(exit);
    }
    if let Some(execution) = &info.execution {
        let bytes = |bytes: &Option<Base64>| bytes.as_ref().map(|bytes| bytes.0.clone()).unwrap_or_default();
        // As with the other commands, a closed pipe is not our concern.
        let _ = std::io::stdout().write_all(&bytes(&execution.output));
        let _ = std::io::stderr().write_all(&bytes(&execution.error));
    }
    output::line("palisade:", &summary(info));
    Ok(exit)
}

fn exit(info: &TaskInfo) -> Exit {
    match (info.state, &info.execution) {
        (TaskState::Cancelled, _) => Exit::Cancelled,
        (_, Some(execution)) => Exit::of_outcome(&execution.outcome),
        _ => Exit::HostError,
    }
}

/// What the guest wrote is text where it is text, as in `palisade run --json`.
fn report(info: &TaskInfo) -> Value {
    let mut report = json!(info);
    for name in ["output", "error"] {
        let Some(execution) = report.get_mut("execution").and_then(Value::as_object_mut) else { break };
        let Some(execution_info) = &info.execution else { break };
        let bytes = if name == "output" { &execution_info.output } else { &execution_info.error };
        let Some(encoded) = execution.remove(name) else { continue };
        match bytes.as_ref().map(|bytes| std::str::from_utf8(&bytes.0)) {
            Some(Ok(text)) => execution.insert(name.to_owned(), json!(text)),
            _ => execution.insert(format!("{name}_base64"), encoded),
        };
    }
    report
}

fn summary(info: &TaskInfo) -> String {
    let tried = if info.failures + info.lost > 0 {
        format!(", {} failed and {} lost attempts", info.failures, info.lost)
    } else {
        String::new()
    };
    let ending = ending(info);
    let ending = if ending.is_empty() { ending } else { format!(": {ending}") };
    format!("{}{}{tried}", state_name(info.state), printable(&ending))
}

fn ending(info: &TaskInfo) -> String {
    match (&info.execution, &info.host_error) {
        (Some(execution), _) => execution.outcome.to_string(),
        (None, Some(message)) => message.clone(),
        (None, None) => String::new(),
    }
}

/// The state as in JSON, with spaces.
fn state_name(state: TaskState) -> String {
    state.as_str().replace('_', " ")
}
