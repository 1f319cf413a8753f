//! `palisade tenants`: on whose behalf the daemon runs tasks, and what each may do.

use clap::{Args, Subcommand};
use palisade::Result;
use palisade_rpc::{ListTenants, Rate, SetTenant, TenantInfo, TenantLimits, TenantRef};
use serde_json::json;

use crate::daemon::Connection;
use crate::exit::Exit;
use crate::output;
use crate::table::{printable, table};

#[derive(Debug, Args)]
pub(crate) struct Tenants {
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
    /// Set what a tenant may do, in place of what was set before. Kept over restarts of the daemon. What is left out is as
    /// for every tenant
    Set {
        /// The tenant, which need not have tasks
        name: String,
        /// Its share against other tenants, from 1 to 1000 [default: 1]
        #[arg(long, value_name = "COUNT")]
        weight: Option<u32>,
        /// Tasks run at once
        #[arg(long, value_name = "COUNT")]
        running_max: Option<u32>,
        /// Tasks without an outcome; submissions beyond it are refused
        #[arg(long, value_name = "COUNT")]
        tasks_max: Option<usize>,
        /// Submissions; those above it are refused. `10/s`, `90/m`, `5/h`; `10/s:50` allows 50 at once
        #[arg(long, value_name = "RATE")]
        submit_rate: Option<Rate>,
        /// Tasks started; those above it wait
        #[arg(long, value_name = "RATE")]
        start_rate: Option<Rate>,
    },
    /// Let a tenant have the limits of every tenant again
    Reset { name: String },
}

pub(crate) async fn run(options: Tenants) -> Result<Exit> {
    let client = options.connection.client()?;
    let tenants = match options.command {
        None => {
            let mut query = ListTenants { after: None, tenants_max: Some(1000) };
            let mut tenants = Vec::new();
            loop {
                let page = client.tenants_list(&query).await?;
                tenants.extend(page.tenants);
                query.after = page.next;
                if query.after.is_none() {
                    break tenants;
                }
            }
        }
        Some(Command::Set { name, weight, running_max, tasks_max, submit_rate, start_rate }) => {
            let limits = TenantLimits { weight, running_max, tasks_max, submit_rate, start_rate };
            vec![client.tenants_set(&SetTenant { tenant: name, limits }).await?]
        }
        Some(Command::Reset { name }) => vec![client.tenants_reset(&TenantRef { tenant: name }).await?],
    };
    if options.json {
        output::print_json(&json!({ "tenants": tenants }));
        return Ok(Exit::Success);
    }
    let rows: Vec<_> = tenants.iter().map(row).collect();
    let heading =
        ["TENANT", "QUEUED", "DELAYED", "RUNNING", "WEIGHT", "RUNNING MAX", "TASKS MAX", "SUBMIT RATE", "START RATE"];
    output::print(&table(&heading, &rows));
    Ok(Exit::Success)
}

fn row(tenant: &TenantInfo) -> Vec<String> {
    let limits = tenant.limits;
    let shown = |limit: Option<String>| limit.unwrap_or_else(|| "-".to_owned());
    vec![
        printable(&tenant.tenant),
        tenant.queued.to_string(),
        tenant.delayed.to_string(),
        tenant.running.to_string(),
        limits.weight.unwrap_or(1).to_string(),
        shown(limits.running_max.map(|max| max.to_string())),
        shown(limits.tasks_max.map(|max| max.to_string())),
        shown(limits.submit_rate.map(|rate| rate.to_string())),
        shown(limits.start_rate.map(|rate| rate.to_string())),
    ]
}
