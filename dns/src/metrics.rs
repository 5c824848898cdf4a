//! Counters by zone, without a lock on the way of a query. Names and types that could be made up by
//! anybody fold into one label value.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use common::{
    Published, Registry,
    metrics::{Computed, Family, Row},
};
use hickory_proto::{
    op::ResponseCode,
    rr::{LowerName, RecordType},
};
use prometheus::proto::MetricFamily;

use crate::engine::{Asked, Transport};

const TYPES: [(RecordType, &str); 14] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::PTR, "PTR"),
    (RecordType::NS, "NS"),
    (RecordType::SOA, "SOA"),
    (RecordType::MX, "MX"),
    (RecordType::TXT, "TXT"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::SRV, "SRV"),
    (RecordType::CAA, "CAA"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::DS, "DS"),
    (RecordType::DNSKEY, "DNSKEY"),
    (RecordType::ANY, "ANY"),
];
const CODES: [(ResponseCode, &str); 7] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::BADVERS, "BADVERS"),
];
const TRANSPORTS: [(&str, &str); 8] = [
    ("udp", "ipv4"),
    ("udp", "ipv6"),
    ("tcp", "ipv4"),
    ("tcp", "ipv6"),
    ("tls", "ipv4"),
    ("tls", "ipv6"),
    ("https", "ipv4"),
    ("https", "ipv6"),
];
const OTHER: &str = "other";

const REQUESTS: Family = Family {
    name: "nuage_dns_requests_total",
    help: "DNS requests by zone, transport, address family and type asked for.",
    labels: &["zone", "proto", "family", "type"],
    counter: true,
};
const RESPONSES: Family = Family {
    name: "nuage_dns_responses_total",
    help: "DNS responses by zone and response code.",
    labels: &["zone", "rcode"],
    counter: true,
};
const DROPPED: Family = Family {
    name: "nuage_dns_rate_limited_total",
    help: "Responses not sent, since too many like them went to one network.",
    labels: &[],
    counter: true,
};
const OMITTED: Family = Family {
    name: "nuage_dns_ptr_names_omitted",
    help: "Names without a PTR record for want of room in one message.",
    labels: &["address"],
    counter: false,
};

/// Numbers of types up to this find their column in a table.
const NUMBERED: usize = 258;
/// The column of each type, by its number.
static COLUMNS: [u8; NUMBERED] = columns();

const fn columns() -> [u8; NUMBERED] {
    // The numbers of TYPES, in its order.
    const NUMBERS: [u16; TYPES.len()] = [1, 28, 12, 2, 6, 15, 16, 5, 33, 257, 65, 43, 48, 255];
    let mut columns = [14; NUMBERED];
    let mut column = 0_u8;
    while (column as usize) < TYPES.len() {
        columns[NUMBERS[column as usize] as usize] = column;
        column += 1;
    }
    columns
}

/// What one worker counted in one zone: one number for each transport, type and code.
#[derive(Debug)]
struct Counters([[[AtomicU64; CODES.len() + 1]; TYPES.len() + 1]; TRANSPORTS.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| {
            std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0)))
        }))
    }
}

/// A worker's own counters. Nobody else writes them, so that no cache line wanders between cores.
#[derive(Debug)]
pub(crate) struct Tally {
    metrics: Arc<Metrics>,
    worker: usize,
    /// The registry these counters are in the order of.
    generation: u64,
    /// By the zone's place in the registry.
    zones: Vec<Arc<Counters>>,
    elsewhere: Arc<Counters>,
    dropped: Arc<AtomicU64>,
}

impl Tally {
    /// Follows a registry whose zones may be others than before.
    #[inline]
    pub(crate) fn follow(&mut self, world: &Registry) {
        if self.generation != world.generation {
            self.zones = self.metrics.zones_of(self.worker, world);
            self.generation = world.generation;
        }
    }

    /// Counts an answer.
    #[inline]
    pub(crate) fn count(
        &self,
        zone: Option<usize>,
        asked: &Asked,
        kind: Option<u16>,
        code: u8,
        code_high: u8,
    ) {
        let counters = zone
            .and_then(|zone| self.zones.get(zone))
            .unwrap_or(&self.elsewhere);
        let transport = match asked.transport {
            Transport::Udp => 0,
            Transport::Tcp => 2,
            Transport::Tls => 4,
            Transport::Https => 6,
        };
        let transport = transport + usize::from(asked.source.is_ipv6());
        let kind = kind
            .and_then(|kind| COLUMNS.get(usize::from(kind)))
            .map_or(TYPES.len(), |column| usize::from(*column));
        let code = match (code_high, code) {
            (0, 0) => 0,
            (0, 3) => 1,
            (0, 5) => 2,
            (0, 1) => 3,
            (0, 4) => 4,
            (0, 2) => 5,
            (1, 0) => 6,
            _ => CODES.len(),
        };
        let counter = &counters.0[transport][kind][code];
        // One writer: no need for an atomic addition.
        counter.store(counter.load(Relaxed) + 1, Relaxed);
    }

    /// Counts an answer that was held back.
    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }
}

/// A worker's counters by zone.
type ByZone = HashMap<LowerName, Arc<Counters>>;

/// All counters of the server.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// By worker. Locked when zones come and go, and at a scrape.
    workers: Mutex<Vec<(ByZone, Arc<Counters>)>>,
    dropped: Arc<AtomicU64>,
}

impl Metrics {
    pub(crate) fn register(
        published: &Arc<Published>,
        registry: &prometheus::Registry,
    ) -> prometheus::Result<Arc<Self>> {
        let metrics = Arc::new(Self {
            workers: Mutex::default(),
            dropped: Arc::default(),
        });
        let (counters, published) = (Arc::clone(&metrics), Arc::clone(published));
        let compute = move || counters.families(&published.load());
        registry.register(Box::new(Computed::new(
            &[REQUESTS, RESPONSES, DROPPED, OMITTED],
            compute,
        )?))?;
        Ok(metrics)
    }

    /// Counters for one more worker.
    pub(crate) fn worker(self: &Arc<Self>) -> Tally {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = Arc::new(Counters::default());
        workers.push((HashMap::new(), Arc::clone(&elsewhere)));
        Tally {
            metrics: Arc::clone(self),
            worker: workers.len() - 1,
            generation: 0,
            zones: Vec::new(),
            elsewhere,
            dropped: Arc::clone(&self.dropped),
        }
    }

    /// A worker's counters for the zones there are, and no others.
    fn zones_of(&self, worker: usize, world: &Registry) -> Vec<Arc<Counters>> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((known, _)) = workers.get_mut(worker) else {
            return Vec::new();
        };
        let mut kept = HashMap::new();
        let mut zones = Vec::new();
        for served in world.served.iter() {
            let apex = &served.authority.apex;
            let counters = known.get(apex).cloned().unwrap_or_default();
            kept.insert(apex.clone(), Arc::clone(&counters));
            zones.push(counters);
        }
        *known = kept;
        zones
    }

    fn families(&self, registry: &Registry) -> Vec<MetricFamily> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let zones = registry.served.iter().map(|served| {
            let apex = &served.authority.apex;
            let counters: Vec<&Arc<Counters>> = workers
                .iter()
                .filter_map(|(zones, _)| zones.get(apex))
                .collect();
            (apex.to_string().trim_end_matches('.').to_owned(), counters)
        });
        let elsewhere = workers.iter().map(|(_, elsewhere)| elsewhere).collect();
        let names: Vec<(String, Vec<&Arc<Counters>>)> =
            zones.chain([(OTHER.to_owned(), elsewhere)]).collect();
        let mut requests: Vec<Row<'_>> = Vec::new();
        let mut responses: Vec<Row<'_>> = Vec::new();
        let types = || {
            TYPES
                .iter()
                .map(|(_, name)| *name)
                .chain([OTHER])
                .enumerate()
        };
        let codes = || {
            CODES
                .iter()
                .map(|(_, name)| *name)
                .chain([OTHER])
                .enumerate()
        };
        for (zone, counters) in &names {
            let total = |transport: usize, kind: usize, code: usize| -> u64 {
                counters
                    .iter()
                    .map(|counters| counters.0[transport][kind][code].load(Relaxed))
                    .sum()
            };
            for (transport, (proto, family)) in TRANSPORTS.iter().enumerate() {
                for (kind, name) in types() {
                    let count = codes().map(|(code, _)| total(transport, kind, code)).sum();
                    if count > 0 {
                        requests.push((vec![zone, proto, family, name], number(count)));
                    }
                }
            }
            for (code, name) in codes() {
                let by_transport = (0..TRANSPORTS.len()).map(|transport| {
                    let of_types = types().map(|(kind, _)| total(transport, kind, code));
                    of_types.sum::<u64>()
                });
                let count = by_transport.sum();
                if count > 0 {
                    responses.push((vec![&**zone, name], number(count)));
                }
            }
        }
        let addresses: Vec<(String, f64)> = registry
            .reverse
            .iter()
            .map(|zone| (zone.address.to_string(), number(zone.omitted as u64)))
            .collect();
        vec![
            REQUESTS.with_rows(requests),
            RESPONSES.with_rows(responses),
            DROPPED.with_rows([(Vec::new(), number(self.dropped.load(Relaxed)))]),
            OMITTED.with_rows(
                addresses
                    .iter()
                    .map(|(address, omitted)| (vec![&**address], *omitted)),
            ),
        ]
    }
}

/// Prometheus numbers are doubles: exact up to 2^53.
#[expect(
    clippy::cast_precision_loss,
    reason = "a counter past 2^53 may be off by one"
)]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_with_a_name_has_its_column() {
        for (column, (kind, name)) in TYPES.iter().enumerate() {
            let number = usize::from(u16::from(*kind));
            assert_eq!(usize::from(COLUMNS[number]), column, "{name}");
        }
        assert_eq!(usize::from(COLUMNS[99]), TYPES.len());
    }
}
