//! `nuage capacity`: what memory there is and what takes it.

use std::path::Path;

use bytesize::ByteSize;
use common::Config;
use containers::Capacity;
use http::Method;

use super::running::block_on;
use crate::{
    control::{Client, nothing},
    output::{Done, Output, table},
};

/// The largest sites named.
const LARGEST: usize = 10;

/// Asks control and shows.
pub(crate) fn show(config: &Path, output: &Output) -> anyhow::Result<Done> {
    let client = Client::new(&Config::load(config)?.containers.socket);
    let capacity: Capacity = block_on(client.ask(Method::GET, "/v1/capacity", nothing()))??;
    output.print(&capacity, || text(&capacity))?;
    Ok(Done::Well)
}

fn text(capacity: &Capacity) -> String {
    let size = |bytes: u64| ByteSize::b(bytes).display().iec().to_string();
    let state = |state: &str| capacity.states.get(state).copied().unwrap_or(0);
    let resting = capacity.declared.saturating_sub(
        ["awake", "waking", "dozing", "asleep", "crashed"]
            .iter()
            .map(|word| state(word))
            .sum(),
    );
    let budget = format!(
        "{} of {} on this machine ([capacity] memory)",
        size(capacity.budget_bytes),
        size(capacity.host_bytes)
    );
    let used = format!(
        "{} by {} awake and {} dozing",
        size(capacity.used_bytes),
        state("awake") + state("waking"),
        state("dozing")
    );
    let more = format!(
        "{} more sites, at {} each",
        capacity.more,
        size(capacity.site_bytes)
    );
    let sites = format!(
        "{} declared: {} awake, {} waking, {} dozing, {} asleep, {} archived, {} crashed",
        capacity.declared,
        state("awake"),
        state("waking"),
        state("dozing"),
        state("asleep"),
        resting,
        state("crashed")
    );
    let rows = [
        ("budget", budget),
        ("used", used),
        ("room for", more),
        ("sites", sites),
    ]
    .map(|(key, value)| vec![key.to_owned(), value]);
    let mut text = table("", &rows);
    if !capacity.sites.is_empty() {
        let mut rows = vec![vec!["LARGEST".to_owned(), "MEMORY".to_owned()]];
        rows.extend(
            capacity
                .sites
                .iter()
                .take(LARGEST)
                .map(|(site, bytes)| vec![site.to_string(), size(*bytes)]),
        );
        text.push('\n');
        text.push_str(&table("", &rows));
    }
    text
}
