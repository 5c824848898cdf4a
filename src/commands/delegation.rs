//! What the parent of a zone must hold for resolvers to find it.

use common::{authority::Authority, record::master_line};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};

/// The zone's name servers, in the order of its file.
pub(super) fn servers(authority: &Authority) -> Vec<Name> {
    let apex = authority.node(&authority.apex).into_iter();
    apex.flat_map(|node| node.of_type(RecordType::NS))
        .filter_map(|record| match &record.data {
            RData::NS(server) => Some(server.0.clone()),
            _ => None,
        })
        .collect()
}

/// What the parent zone holds: NS, and addresses of servers inside the zone.
pub(super) fn delegation(authority: &Authority) -> Vec<Record> {
    let apex = authority.node(&authority.apex).into_iter();
    let ns = apex
        .flat_map(|node| node.of_type(RecordType::NS))
        .cloned()
        .collect::<Vec<_>>();
    let glue = servers(authority)
        .into_iter()
        .map(|server| LowerName::new(&server))
        .filter(|server| authority.apex.zone_of(server))
        .filter_map(|server| authority.node(&server))
        .flat_map(|node| {
            node.records
                .iter()
                .filter(|record| record.record_type().is_ip_addr())
                .cloned()
        });
    ns.into_iter().chain(glue).collect()
}

/// The same as lines of a master file.
pub(super) fn lines(authority: &Authority) -> Vec<String> {
    delegation(authority).iter().map(master_line).collect()
}

/// A name as people write it: no final dot, no escaped slash.
pub(super) fn plain(name: &Name) -> String {
    if name.is_root() {
        return ".".to_owned();
    }
    let text = name.to_ascii();
    text.trim_end_matches('.').replace("\\/", "/")
}
