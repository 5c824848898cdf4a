//! `nuage zone`: what DNS serves.

use std::path::Path;

use anyhow::anyhow;
use common::{Declared, record::master_line, served::Served};

use super::{
    complain_of_errors,
    delegation::{self, plain},
    keys, open, open_with,
};
use crate::{
    args::ZoneCommand,
    output::{Done, Output, table},
};

/// Runs a command on zones.
pub(crate) fn run(command: &ZoneCommand, config: &Path, output: &Output) -> anyhow::Result<Done> {
    let declared = match command {
        ZoneCommand::Export { .. } => open_with(Declared::open_signed, config)?,
        _ => open(config)?,
    };
    complain_of_errors(&declared)?;
    match command {
        ZoneCommand::List => list(&declared, output),
        ZoneCommand::Show { origin } => show(&declared, origin, output),
        ZoneCommand::Export { origin } => export(&declared, origin, output),
        ZoneCommand::Ds { origin, published } => keys::ds(&declared, origin, *published, output),
        ZoneCommand::Keys { origin } => keys::list(&declared, origin, output),
        ZoneCommand::Roll { origin, role } => keys::roll(&declared, origin, *role, output),
    }
}

fn list(declared: &Declared, output: &Output) -> anyhow::Result<Done> {
    let registry = declared.registry();
    let forward = registry
        .zones
        .iter()
        .map(|zone| (zone.sites.len(), zone.file.display().to_string()));
    let reverse = registry
        .reverse
        .iter()
        .map(|zone| (0, format!("reverse of {}", zone.address)));
    let zones: Vec<_> = registry
        .served
        .iter()
        .zip(forward.chain(reverse))
        .map(|(served, (sites, from))| (&served.authority, served.serial, sites, from))
        .collect();
    let json: Vec<_> = zones
        .iter()
        .map(|(authority, serial, sites, from)| serde_json::json!({ "origin": plain(&authority.apex), "serial": serial, "sites": sites, "from": from }))
        .collect();
    output.print(&json, || {
        let mut rows = vec![
            ["ZONE", "SERIAL", "SITES", "FROM"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(zones.iter().map(|(authority, serial, sites, from)| {
            vec![
                plain(&authority.apex),
                serial.to_string(),
                sites.to_string(),
                from.clone(),
            ]
        }));
        table("", &rows)
    })?;
    Ok(Done::Well)
}

fn show(declared: &Declared, origin: &str, output: &Output) -> anyhow::Result<Done> {
    let served = find(declared, origin)?;
    let (authority, serial) = (&*served.authority, served.serial);
    let records = served.records().count();
    let servers = delegation::servers(authority);
    let delegation = delegation::lines(authority);
    let json = serde_json::json!({
        "origin": plain(&authority.apex),
        "serial": serial,
        "ttl": authority.ttl,
        "nameservers": servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "records": records,
        "delegation": delegation,
    });
    output.print(&json, || {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let rows = [
            ("zone", plain(&authority.apex)),
            ("serial", serial.to_string()),
            ("ttl", authority.ttl.to_string()),
            ("name servers", servers.join(" ")),
            ("records", records.to_string()),
        ];
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .map(|(key, value)| vec![key.to_owned(), value])
            .collect();
        format!(
            "{}\nThe parent zone delegates it with:\n{}",
            table("", &rows),
            delegation
                .iter()
                .map(|line| format!("  {line}\n"))
                .collect::<String>()
        )
    })?;
    Ok(Done::Well)
}

fn export(declared: &Declared, origin: &str, output: &Output) -> anyhow::Result<Done> {
    let served = find(declared, origin)?;
    let lines: Vec<String> = served
        .records()
        .map(|record| master_line(&record))
        .collect();
    output.print(&lines, || lines.join("\n") + "\n")?;
    Ok(Done::Well)
}

pub(super) fn find<'d>(declared: &'d Declared, origin: &str) -> anyhow::Result<&'d Served> {
    let served = &declared.registry().served;
    let wanted = origin.trim_end_matches('.').to_ascii_lowercase();
    served
        .iter()
        .find(|zone| plain(&zone.authority.apex) == wanted)
        .map(|zone| &**zone)
        .ok_or_else(|| {
            let known: Vec<String> = served
                .iter()
                .map(|zone| plain(&zone.authority.apex))
                .collect();
            anyhow!("there is no zone {origin}; there are {}", known.join(", "))
        })
}
