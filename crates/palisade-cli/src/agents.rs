//! `palisade agents`: who runs the tasks of the daemon.

use std::io::Write;

use clap::{Args, Subcommand};
use palisade::{Error, ErrorKind, Result, units};
use palisade_rpc::{
    AgentInfo, AgentSettings, Base64, Client, LookAtMemory, MemoryPage, Nothing, PluginRef, SpawnAgent,
};
use serde_json::json;

use crate::daemon::Connection;
use crate::exit::Exit;
use crate::output;
use crate::table::{printable, table};

#[derive(Debug, Args)]
pub(crate) struct Agents {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print one JSON object
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the agent of a plugin anew, when it was terminated or has failed too often
    Spawn { plugin: String },
    /// What the agent of a plugin did, and where it is
    Stats { plugin: String },
    /// List the keys that the agent of a plugin remembers, or write the value of one as it is
    Memory {
        plugin: String,
        /// The key whose value to show
        key: Option<String>,
        /// The key is written in base64
        #[arg(long, requires = "key")]
        base64: bool,
    },
    /// End the agent of a plugin
    Terminate { plugin: String },
}

pub(crate) async fn agents(options: Agents) -> Result<Exit> {
    let client = options.connection.client()?;
    let agents = match options.command {
        None => client.agents_list(&Nothing {}).await?.agents,
        Some(Command::Spawn { plugin }) => {
            vec![client.agents_spawn(&SpawnAgent { plugin, agent: AgentSettings::default() }).await?]
        }
        Some(Command::Stats { plugin }) => vec![client.agents_stats(&PluginRef { plugin }).await?],
        Some(Command::Memory { plugin, key, base64 }) => {
            let key = key.map(|key| if base64 { from_base64(&key) } else { Ok(Base64(key.into())) }).transpose()?;
            return memory(&client, plugin, key, options.json).await;
        }
        Some(Command::Terminate { plugin }) => vec![client.agents_terminate(&PluginRef { plugin }).await?],
    };
    if options.json {
        output::print_json(&json!({ "agents": agents }));
        return Ok(Exit::Success);
    }
    let row = |agent: &AgentInfo| {
        let ended: u64 = agent.outcomes.values().sum();
        vec![
            printable(&agent.name),
            json!(agent.state).as_str().unwrap_or_default().to_owned(),
            agent.running.to_string(),
            agent.outcomes.get("completed").copied().unwrap_or_default().to_string(),
            ended.to_string(),
            agent.restarts.to_string(),
            format!("{:.1} ms", agent.latency_p50_ms),
            format!("{:.1} ms", agent.latency_p99_ms),
            units::display_bytes(agent.memory_peak_bytes),
        ]
    };
    let rows: Vec<_> = agents.iter().map(row).collect();
    let heading = ["AGENT", "STATE", "RUNNING", "COMPLETED", "ENDED", "RESTARTS", "P50", "P99", "MEMORY PEAK"];
    output::print(&table(&heading, &rows));
    Ok(Exit::Success)
}

/// Lists all keys, or writes the value of one.
async fn memory(client: &Client, plugin: String, key: Option<Base64>, json: bool) -> Result<Exit> {
    let mut query = LookAtMemory::new(plugin);
    (query.key, query.entries_max) = (key, Some(1000));
    let mut entries = Vec::new();
    loop {
        let page = client.agents_memory(&query).await?;
        entries.extend(page.entries);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    if json {
        output::print_json(&json!(MemoryPage { entries, next: None }));
        return Ok(Exit::Success);
    }
    if let [entry] = &entries[..]
        && let Some(value) = &entry.value
    {
        // A closed pipe is not our concern.
        let _ = std::io::stdout().write_all(&value.0);
        return Ok(Exit::Success);
    }
    let row = |entry: &palisade_rpc::MemoryEntry| {
        vec![printable(&String::from_utf8_lossy(&entry.key.0)), entry.value_bytes.to_string()]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    output::print(&table(&["KEY", "BYTES"], &rows));
    Ok(Exit::Success)
}

fn from_base64(key: &str) -> Result<Base64> {
    serde_json::from_value(json!(key))
        .map_err(|error| Error::new(ErrorKind::InvalidInput, "parse", "the key is not base64").with_source(error))
}
