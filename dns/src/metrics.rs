//! Counters by zone, without a lock on the way of a query. Names and types that could be made up by
//! anybody fold into one label value.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use common::{
    Published, Registry,
    metrics::{Computed, Family, Row},
};
use hickory_proto::{
    op::ResponseCode,
    rr::{LowerName, RecordType},
};
use hickory_server::net::xfer::Protocol;
use prometheus::proto::MetricFamily;

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
const TRANSPORTS: [(&str, &str); 4] = [
    ("udp", "ipv4"),
    ("udp", "ipv6"),
    ("tcp", "ipv4"),
    ("tcp", "ipv6"),
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
const OMITTED: Family = Family {
    name: "nuage_dns_ptr_names_omitted",
    help: "Names without a PTR record for want of room in one message.",
    labels: &["address"],
    counter: false,
};

/// Index into [`TRANSPORTS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport(usize);

impl Transport {
    pub(crate) fn of(source: SocketAddr, protocol: Protocol) -> Self {
        let stream = usize::from(protocol != Protocol::Udp);
        Self(stream * 2 + usize::from(source.is_ipv6()))
    }
}

#[derive(Debug, Default)]
struct Counters {
    requests: [[AtomicU64; TYPES.len() + 1]; TRANSPORTS.len()],
    responses: [AtomicU64; CODES.len() + 1],
}

/// All counters of the server.
#[derive(Debug)]
pub(crate) struct Metrics {
    // Replaced when zones come and go.
    zones: ArcSwap<HashMap<LowerName, Arc<Counters>>>,
    elsewhere: Counters,
}

impl Metrics {
    pub(crate) fn register(
        published: &Arc<Published>,
        registry: &prometheus::Registry,
    ) -> prometheus::Result<Arc<Self>> {
        let metrics = Arc::new(Self {
            zones: ArcSwap::default(),
            elsewhere: Counters::default(),
        });
        metrics.keep(&published.load());
        let (counters, published) = (Arc::clone(&metrics), Arc::clone(published));
        let compute = move || counters.families(&published.load());
        registry.register(Box::new(Computed::new(
            &[REQUESTS, RESPONSES, OMITTED],
            compute,
        )?))?;
        Ok(metrics)
    }

    pub(crate) fn count(
        &self,
        zone: Option<&LowerName>,
        transport: Transport,
        kind: Option<RecordType>,
        code: ResponseCode,
    ) {
        let zones = self.zones.load();
        let counters = zone
            .and_then(|zone| zones.get(zone))
            .map_or(&self.elsewhere, |counters| counters);
        let kind = TYPES
            .iter()
            .position(|(known, _)| Some(*known) == kind)
            .unwrap_or(TYPES.len());
        let code = CODES
            .iter()
            .position(|(known, _)| *known == code)
            .unwrap_or(CODES.len());
        counters.requests[transport.0][kind].fetch_add(1, Relaxed);
        counters.responses[code].fetch_add(1, Relaxed);
    }

    /// Counters for the zones there are, and no others.
    fn keep(&self, registry: &Registry) {
        let zones = self.zones.load();
        let mut kept = HashMap::new();
        for (authority, _) in registry.authorities() {
            let counters = zones.get(&authority.apex).cloned().unwrap_or_default();
            kept.insert(authority.apex.clone(), counters);
        }
        self.zones.store(Arc::new(kept));
    }

    fn families(&self, registry: &Registry) -> Vec<MetricFamily> {
        let zones = self.zones.load();
        let names: Vec<(String, &Counters)> = zones
            .iter()
            .map(|(zone, counters)| {
                (
                    zone.to_string().trim_end_matches('.').to_owned(),
                    &**counters,
                )
            })
            .chain(std::iter::once((OTHER.to_owned(), &self.elsewhere)))
            .collect();
        let mut requests: Vec<Row<'_>> = Vec::new();
        let mut responses: Vec<Row<'_>> = Vec::new();
        for (zone, counters) in &names {
            for ((proto, family), by_type) in TRANSPORTS.iter().zip(&counters.requests) {
                let types = TYPES.iter().map(|(_, name)| *name).chain([OTHER]);
                for (kind, count) in types.zip(by_type).filter_map(counted) {
                    requests.push((vec![zone, proto, family, kind], count));
                }
            }
            let codes = CODES.iter().map(|(_, name)| *name).chain([OTHER]);
            responses.extend(
                codes
                    .zip(&counters.responses)
                    .filter_map(counted)
                    .map(|(code, count)| (vec![&**zone, code], count)),
            );
        }
        let addresses: Vec<(String, f64)> = registry
            .reverse
            .iter()
            .map(|(zone, _)| {
                (
                    zone.address.to_string(),
                    f64::from(u32::try_from(zone.omitted).unwrap_or(u32::MAX)),
                )
            })
            .collect();
        vec![
            REQUESTS.with_rows(requests),
            RESPONSES.with_rows(responses),
            OMITTED.with_rows(
                addresses
                    .iter()
                    .map(|(address, omitted)| (vec![&**address], *omitted)),
            ),
        ]
    }
}

fn counted<'a>((name, counter): (&'a str, &AtomicU64)) -> Option<(&'a str, f64)> {
    let count = counter.load(Relaxed);
    // Prometheus numbers are doubles: exact up to 2^53.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a counter past 2^53 may be off by one"
    )]
    (count > 0).then_some((name, count as f64))
}

/// Lets counters come and go with their zones.
pub(crate) async fn follow(published: Arc<Published>, metrics: Arc<Metrics>) {
    let mut generations = published.subscribe();
    while generations.changed().await.is_ok() {
        metrics.keep(&published.load());
    }
}
