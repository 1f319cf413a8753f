//! `palisade backends`.

use clap::Args;
use palisade::{Capabilities, Enforcement, GrantKind, Resource, Result};
use serde_json::json;

use crate::exit::Exit;
use crate::table::table;
use crate::{Machine, backend_options, output};

#[derive(Debug, Args)]
pub(crate) struct Backends {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(options: &Backends) -> Result<Exit> {
    let mut all = Vec::new();
    for registration in palisade::backends() {
        let sandbox = (registration.open)(&backend_options(false, &Machine::default()))?;
        all.push((registration, sandbox.capabilities().clone()));
    }
    if options.json {
        let list: Vec<_> = all
            .iter()
            .map(|(registration, capabilities)| {
                json!({ "name": registration.name, "summary": registration.summary, "capabilities": capabilities })
            })
            .collect();
        output::print_json(&json!(list));
        return Ok(Exit::Success);
    }
    if all.is_empty() {
        output::print("no backend is linked into this program; `use my_backend as _;` links one\n");
        return Ok(Exit::Success);
    }
    for (registration, capabilities) in &all {
        output::print(&format!("{}: {} ({})\n", registration.name, registration.summary, capabilities.engine));
    }
    let mut heading = vec!["\nCAPABILITY"];
    heading.extend(all.iter().map(|(registration, _)| registration.name));
    let row = |name: String, value: &dyn Fn(&Capabilities) -> String| {
        let mut row = vec![name];
        row.extend(all.iter().map(|(_, capabilities)| value(capabilities)));
        row
    };
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    let mut rows = vec![
        row("artifacts".into(), &|c| list(&mut c.artifacts.iter().map(ToString::to_string))),
        row("guest interfaces".into(), &|c| list(&mut c.abis.iter().map(ToString::to_string))),
    ];
    for resource in Resource::ALL.iter().copied() {
        rows.push(row(
            format!("quota {resource}"),
            &|capabilities| match (capabilities.enforcement(resource), resource) {
                (Enforcement::AlwaysZero, _) => "always 0".to_owned(),
                (Enforcement::Unsupported, _) => "-".to_owned(),
                (_, Resource::Memory) => format!("up to {}", resource.display(capabilities.memory_bytes_max)),
                (_, Resource::Stack) => format!(
                    "{} to {}",
                    resource.display(capabilities.stack_bytes_min),
                    resource.display(capabilities.stack_bytes_max)
                ),
                (_, Resource::Fuel) if capabilities.fuel_deterministic => "yes, deterministic".to_owned(),
                _ => "yes".to_owned(),
            },
        ));
    }
    for kind in GrantKind::ALL {
        rows.push(row(format!("grant {kind}"), &|capabilities| {
            if capabilities.grants.contains(kind) { "yes" } else { "-" }.to_owned()
        }));
    }
    rows.push(row("instances at once".into(), &|capabilities| capabilities.instances_max.to_string()));
    output::print(&table(&heading, &rows));
    for (registration, capabilities) in &all {
        for caveat in &capabilities.caveats {
            output::print(&format!("\n{}: {caveat}", registration.name));
        }
    }
    output::print("\n");
    Ok(Exit::Success)
}
