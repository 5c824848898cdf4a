//! The `[[records]]` of a zone file.

use std::sync::Arc;

use hickory_proto::rr::{LowerName, Name, Record, RecordType};

use crate::{
    authority::Authority,
    record,
    site::Site,
    table::{Reading, Table},
};

/// Types a site's own name may have in the file: they say how it is reached and who may certify it, and
/// take the place of what Nuage says of it.
const OF_SITES: [RecordType; 3] = [RecordType::HTTPS, RecordType::SVCB, RecordType::CAA];

/// A record as written, and where.
pub(super) struct Written {
    name: usize,
    record: Record,
}

/// Reads those of one piece of a zone file.
pub(super) fn read(
    root: &Table<'_>,
    apex: &Name,
    ttl: u32,
    reading: &mut Reading<'_>,
) -> Vec<Written> {
    let mut records = Vec::new();
    for table in root.array_of_tables("records", &["name", "type", "data", "ttl"], reading) {
        let name = table.string("name", reading);
        let kind = table.string("type", reading);
        let data = table.string("data", reading);
        let (Some(name), Some(kind), Some(data)) = (name, kind, data) else {
            if ["name", "type", "data"].iter().any(|key| !table.has(key)) {
                reading.error(table.at, "a record needs name, type and data, such as name = \"@\", type = \"MX\", data = \"10 mx.school.example.\"");
            }
            continue;
        };
        let own_ttl = table
            .integer("ttl", 1..=604_800, reading)
            .and_then(|own| u32::try_from(own).ok());
        let owner =
            record::parse_owner(name.value, apex).map_err(|error| reading.error(name.at, error));
        let rdata = record::parse_data(kind.value, data.value, apex)
            .map_err(|error| reading.error(data.at, error));
        let (Ok(owner), Ok(rdata)) = (owner, rdata) else {
            continue;
        };
        records.push(Written {
            name: name.at,
            record: Record::from_rdata(owner, own_ttl.unwrap_or(ttl), rdata),
        });
    }
    records
}

/// Adds records to their zone, each checked against what stands at its name already.
pub(super) fn add(
    records: Vec<Written>,
    authority: &mut Authority,
    sites: &[Arc<Site>],
    reading: &mut Reading<'_>,
) {
    let mut secured = Vec::new();
    for Written { name, record } in records {
        if let Some(conflict) = conflict(&record, authority, sites) {
            reading.error(name, conflict);
            continue;
        }
        if record.record_type() == RecordType::DS {
            secured.push((name, LowerName::new(&record.name)));
        }
        authority.add(record);
    }
    // RFC 4035 §2.4
    for (at, name) in secured {
        if !authority
            .node(&name)
            .is_some_and(|node| node.has(RecordType::NS))
        {
            reading.error(
                at,
                format!(
                    "{name} has a DS record and no NS records: DS is for zones that are delegated"
                ),
            );
        }
    }
}

/// Why a record can't join what its name already holds.
fn conflict(record: &Record, authority: &Authority, sites: &[Arc<Site>]) -> Option<String> {
    let (owner, data) = (&record.name, &record.data);
    let (kind, node) = (data.record_type(), LowerName::new(owner));
    if owner.num_labels() == authority.apex.num_labels() + 1
        && !OF_SITES.contains(&kind)
        && let Some(label) = owner.iter().next()
        && let Some(site) = authority.labels().site(label)
        && let Some(site) = sites.get(site as usize)
    {
        return Some(format!(
            "\"{}\" is the site of line {}: a name is a site or a record, but for HTTPS, SVCB and CAA records",
            String::from_utf8_lossy(label),
            site.position.line
        ));
    }
    if node == authority.apex && matches!(kind, RecordType::NS | RecordType::CNAME | RecordType::DS)
    {
        return Some(match kind {
            RecordType::NS => "the zone's own NS records come from `nameservers`".to_owned(),
            _ => format!("the zone itself can't have a {kind} record"),
        });
    }
    let node = authority.node(&node)?;
    // A CNAME stands alone (RFC 1034 §3.6.2, RFC 2181 §10.1).
    if !node.records.is_empty() && (kind == RecordType::CNAME || node.has(RecordType::CNAME)) {
        return Some(format!(
            "a CNAME must be the only record of its name, and {owner} has others"
        ));
    }
    if node.records.iter().any(|other| other.data == *data) {
        return Some(format!("{owner} {kind} {data} is there already"));
    }
    // The records of a set share one TTL (RFC 2181 §5.2).
    node.of_type(kind)
        .find(|other| other.ttl != record.ttl)
        .map(|other| {
            format!(
                "the {kind} records of {owner} must share one TTL: another has {}",
                other.ttl
            )
        })
}
