//! `palisade events`: what happens in the daemon, as it happens.

use std::io::{self, Write};

use clap::Args;
use palisade::text::escaped;
use palisade::{Error, ErrorKind, Result, TaskId};
use palisade_rpc::{Event, EventQuery};
use serde_json::{Value, json};

use crate::daemon::Connection;
use crate::exit::Exit;
use crate::output;
use crate::table::printable;
use crate::tasks::parse_task;

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only events of this task
    #[arg(long, value_name = "TASK", value_parser = parse_task)]
    task: Option<TaskId>,
    /// Only events of this tenant's tasks
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Only events of this plugin: its name or hash
    #[arg(long, value_name = "PLUGIN")]
    plugin: Option<String>,
    /// End after so many events [default: when the daemon ends]
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Print one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(options: Events) -> Result<Exit> {
    let Events { task, tenant, plugin, limit, json, connection } = options;
    let mut events = connection.client()?.events(&EventQuery { task, tenant, plugin }).await?;
    output::line("palisade:", "subscribed");
    let mut told = 0;
    while limit.is_none_or(|limit| told < limit) {
        let Some(event) = events.next().await? else {
            return Err(Error::new(ErrorKind::Io, "hear events", "the daemon ended")
                .with_help("subscribe again when it is back, and look at what happened meanwhile with `palisade ls`"));
        };
        let line = if json { escaped(&json!(event).to_string()) } else { line(&event) };
        let mut stdout = io::stdout().lock();
        if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
            // Nobody reads any more.
            break;
        }
        told += 1;
    }
    Ok(Exit::Success)
}

/// An event on one line: when, what, of whom, and the rest as names and values.
fn line(event: &Event) -> String {
    let mut json = json!(event);
    let mut take = |name: &str| json.as_object_mut().and_then(|object| object.remove(name)).unwrap_or_default();
    let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
    let (unix_ms, name, task, agent) = (take("unix_ms"), word(take("event")), word(take("task")), word(take("name")));
    take("plugin");
    let mut line = match unix_ms.as_u64() {
        Some(unix_ms) => format!("{}.{:03} ", unix_ms / 1000, unix_ms % 1000),
        None => String::new(),
    };
    line += &format!("{} {task}{agent}", name.replace('_', " "));
    let outcome =
        if let Event::Finished { outcome: Some(outcome), .. } = event { outcome.to_string() } else { String::new() };
    if !outcome.is_empty() {
        take("outcome");
    }
    for (name, value) in json.as_object().into_iter().flatten() {
        line += &format!(" {name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    if !outcome.is_empty() {
        line += &format!(": {outcome}");
    }
    printable(&line)
}
