//! The `[[records]]` of a zone file.

use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::sites::Taken;
use crate::{
    authority::Authority,
    record,
    table::{Reading, Table},
};

/// Types a site's own name may have in the file: they say how it is reached and who may certify it, and
/// take the place of what Nuage says of it.
const OF_SITES: [RecordType; 3] = [RecordType::HTTPS, RecordType::SVCB, RecordType::CAA];

/// The extra records, each checked against what stands at its name already.
pub(super) fn read(
    root: &Table<'_>,
    apex: &Name,
    ttl: u32,
    authority: &mut Authority,
    taken: &Taken<'_>,
    reading: &mut Reading<'_>,
) {
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
        if let Some(conflict) = conflict(
            &owner,
            &rdata,
            own_ttl.unwrap_or(ttl),
            apex,
            authority,
            taken,
        ) {
            reading.error(name.at, conflict);
            continue;
        }
        authority.add(Record::from_rdata(owner, own_ttl.unwrap_or(ttl), rdata));
    }
}

/// Why a record can't join what its name already holds.
fn conflict(
    owner: &Name,
    data: &RData,
    ttl: u32,
    apex: &Name,
    authority: &Authority,
    taken: &Taken<'_>,
) -> Option<String> {
    let kind = data.record_type();
    if owner.num_labels() == apex.num_labels() + 1 && !OF_SITES.contains(&kind) {
        let label = owner
            .iter()
            .next()
            .map(|label| String::from_utf8_lossy(label).into_owned())
            .unwrap_or_default();
        if let Some(site) = taken.labels.get(&*label) {
            return Some(format!(
                "\"{label}\" is the site of line {}: a name is a site or a record, but for HTTPS, SVCB and CAA records",
                site.line
            ));
        }
    }
    if owner == apex && matches!(kind, RecordType::NS | RecordType::CNAME | RecordType::DS) {
        return Some(match kind {
            RecordType::NS => "the zone's own NS records come from `nameservers`".to_owned(),
            _ => format!("the zone itself can't have a {kind} record"),
        });
    }
    let node = authority.node(&owner.into())?;
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
        .find(|other| other.ttl != ttl)
        .map(|other| {
            format!(
                "the {kind} records of {owner} must share one TTL: another has {}",
                other.ttl
            )
        })
}
