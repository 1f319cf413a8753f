//! `palisade agents`: who runs the tasks of the daemon.

use clap::{Args, Subcommand};
use palisade::{Result, units};
use palisade_rpc::{AgentInfo, AgentSettings, Nothing, PluginRef, SpawnAgent};
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
