//! `palisade plugins`: what the daemon can run.

use clap::{Args, Subcommand};
use palisade::{Result, units};
use palisade_rpc::{Nothing, PluginInfo, PluginRef};
use serde_json::json;

use crate::daemon::Connection;
use crate::exit::Exit;
use crate::output;
use crate::table::{printable, table};

#[derive(Debug, Args)]
pub(crate) struct Plugins {
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
    /// Remove a plugin: its name or hash. Tasks that still wait for it will fail
    Remove { plugin: String },
}

pub(crate) async fn run(options: Plugins) -> Result<Exit> {
    let client = options.connection.client()?;
    if let Some(Command::Remove { plugin }) = options.command {
        let removed = client.plugins_remove(&PluginRef { plugin }).await?;
        if options.json {
            output::print_json(&json!(removed));
        } else {
            output::print(&format!("{}\n", removed.plugin));
        }
        return Ok(Exit::Success);
    }
    let list = client.plugins_list(&Nothing {}).await?;
    if options.json {
        output::print_json(&json!(list));
        return Ok(Exit::Success);
    }
    let row = |plugin: &PluginInfo| {
        vec![
            printable(&plugin.name),
            plugin.kind.to_string(),
            units::display_bytes(plugin.size_bytes),
            if plugin.agent.is_some() { "yes" } else { "no" }.to_owned(),
            plugin.plugin.to_string(),
        ]
    };
    let rows: Vec<_> = list.plugins.iter().map(row).collect();
    output::print(&table(&["PLUGIN", "KIND", "SIZE", "AGENT", "HASH"], &rows));
    Ok(Exit::Success)
}
