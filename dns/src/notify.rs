//! Telling secondaries that a zone changed (RFC 1996): at once, and again until they acknowledge.
//!
//! One task knows of each secondary and zone what was told last. Only the newest serial matters; what
//! is not acknowledged in half a minute is left to the secondary's own refresh.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use common::{
    Published, Registry,
    metrics::{Computed, Family, Row},
    secondary::Key,
};
use hickory_proto::{
    rr::LowerName,
    serialize::binary::{BinEncodable, BinEncoder},
};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep_until},
};

use crate::{
    transfer::now,
    tsig::Asked,
    wire::{self, HEADER, QR},
};

/// Waits for an acknowledgement, one after each time it is told (RFC 1996 §3.6).
const WAITS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
];
/// Told at once; the others a moment later, so that no burst of many zones gets lost.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(10);
const ANSWER_OCTETS: usize = 4_096;

/// Opcode NOTIFY with AA (RFC 1996 §3.3, §3.7).
const FLAGS: u8 = 0x24;
const OPCODE: u8 = 0x78;

const TOLD: Family = Family {
    name: "nuage_dns_notify_total",
    help: "Changes of zones that secondaries were told of, by how that ended: acknowledged, refused or unanswered.",
    labels: &["secondary", "result"],
    counter: true,
};

/// How many changes were told with which result.
#[derive(Debug, Default)]
struct Counts(Mutex<BTreeMap<(String, &'static str), u64>>);

impl Counts {
    fn count(&self, secondary: SocketAddr, result: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((secondary.to_string(), result)).or_default() += 1;
    }
}

/// A secondary and a zone.
type Pair = (SocketAddr, LowerName);

/// What one secondary knows of one zone.
struct Told {
    serial: u32,
    key: Option<Arc<Key>>,
    /// How often it was told, and when next; `None` when that is over.
    times: usize,
    next: Option<Instant>,
    id: u16,
    asked: Option<Asked>,
    /// The code of a refusal whose signature is missing or wrong.
    refused: Option<u8>,
}

/// Tells secondaries of changes until dropped.
pub(crate) struct Notifier {
    published: Arc<Published>,
    sockets: [Option<UdpSocket>; 2],
    counts: Arc<Counts>,
    told: HashMap<Pair, Told>,
    random: SystemRandom,
}

impl Notifier {
    /// `listening` is where secondaries ask us: they know us by such an address.
    pub(crate) fn register(
        published: &Arc<Published>,
        listening: &[SocketAddr],
        metrics: &prometheus::Registry,
    ) -> prometheus::Result<Self> {
        let counts = Arc::new(Counts::default());
        let (counted, served) = (Arc::clone(&counts), Arc::clone(published));
        let compute = move || {
            let mut counts = counted.0.lock().unwrap_or_else(PoisonError::into_inner);
            let registry = served.load();
            let known: Vec<String> = registry
                .secondaries
                .iter()
                .filter_map(|secondary| secondary.notify)
                .map(|address| address.to_string())
                .collect();
            counts.retain(|(secondary, _), _| known.contains(secondary));
            #[expect(clippy::cast_precision_loss, reason = "counters are doubles")]
            let rows: Vec<Row<'_>> = counts
                .iter()
                .map(|((secondary, result), count)| {
                    (vec![secondary.as_str(), *result], *count as f64)
                })
                .collect();
            vec![TOLD.with_rows(rows)]
        };
        metrics.register(Box::new(Computed::new(&[TOLD], compute)?))?;
        Ok(Self {
            published: Arc::clone(published),
            sockets: [
                socket(IpAddr::V4(Ipv4Addr::UNSPECIFIED), listening),
                socket(IpAddr::V6(Ipv6Addr::UNSPECIFIED), listening),
            ],
            counts,
            told: HashMap::new(),
            random: SystemRandom::new(),
        })
    }

    /// Follows publications.
    pub(crate) async fn run(mut self) {
        let mut generations = self.published.subscribe();
        let [mut v4, mut v6] = [[0; ANSWER_OCTETS]; 2];
        loop {
            generations.borrow_and_update();
            let registry = Arc::clone(&self.published.load());
            self.renew(&registry);
            // Until the registry changes, this one is told of.
            loop {
                let next = self.tell(&registry).await;
                tokio::select! {
                    changed = generations.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = until(next) => {}
                    got = receive(self.sockets[0].as_ref(), &mut v4) => self.heard(got, &v4),
                    got = receive(self.sockets[1].as_ref(), &mut v6) => self.heard(got, &v6),
                }
            }
        }
    }

    /// Compares what is served with what was told.
    fn renew(&mut self, registry: &Registry) {
        let mut before = std::mem::take(&mut self.told);
        for secondary in registry.secondaries.iter() {
            let Some(address) = secondary.notify else {
                continue;
            };
            for served in registry.served.iter() {
                let (authority, serial) = (&served.authority, served.serial);
                if !secondary.wants(&authority.apex) {
                    continue;
                }
                let pair = (address, authority.apex.clone());
                let known = before
                    .remove(&pair)
                    .filter(|told| told.serial == serial && told.key == secondary.key);
                let told = known.unwrap_or_else(|| Told {
                    serial,
                    key: secondary.key.clone(),
                    times: 0,
                    next: Some(Instant::now()),
                    id: 0,
                    asked: None,
                    refused: None,
                });
                self.told.entry(pair).or_insert(told);
            }
        }
    }

    /// Tells what is due; when to look again.
    async fn tell(&mut self, registry: &Registry) -> Option<Instant> {
        let clock = Instant::now();
        let mut burst = 0;
        let mut soonest: Option<Instant> = None;
        for ((address, zone), told) in &mut self.told {
            if let Some(next) = told.next
                && next <= clock
                && burst < BURST
            {
                if let Some(wait) = WAITS.get(told.times) {
                    burst += 1;
                    told.times += 1;
                    told.next = Some(clock + *wait);
                    let mut id = [0; 2];
                    // Without randomness the id is that of last time; the key, if any, still holds.
                    self.random.fill(&mut id).unwrap_or_default();
                    told.id = u16::from_be_bytes(id);
                    if let Some(mut message) = message(registry, zone, told.id) {
                        told.asked = told
                            .key
                            .as_ref()
                            .map(|key| Asked::sign(&mut message, key, now()));
                        let socket = self.sockets[usize::from(address.is_ipv6())].as_ref();
                        if let Some(socket) = socket
                            && let Err(error) = socket.send_to(&message, address).await
                        {
                            tracing::debug!(%error, %address, %zone, "NOTIFY not sent");
                        }
                    }
                } else if let Some(code) = told.refused {
                    told.next = None;
                    self.counts.count(*address, "refused");
                    tracing::warn!(secondary = %address, %zone, code, "a secondary refuses NOTIFY, and can't sign that: does it have our key?");
                } else {
                    told.next = None;
                    self.counts.count(*address, "unanswered");
                    tracing::warn!(secondary = %address, %zone, serial = told.serial, "a secondary does not acknowledge NOTIFY: it follows at its next refresh");
                }
            }
            soonest = match (soonest, told.next) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        soonest.map(|at| if burst > 0 { at.max(clock + PAUSE) } else { at })
    }

    fn heard(&mut self, got: io::Result<(usize, SocketAddr)>, buffer: &[u8]) {
        // An error is that of an earlier message; the socket itself is well.
        let Ok((length, source)) = got else {
            return;
        };
        let answer = &buffer[..length];
        if length < HEADER || answer[2] & (QR | OPCODE) != QR | (FLAGS & OPCODE) {
            return;
        }
        let id = u16::from_be_bytes([answer[0], answer[1]]);
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        let told = self.told.iter_mut().find(|((address, _), told)| {
            *address == source && told.id == id && told.next.is_some() && told.times > 0
        });
        let Some(((address, zone), told)) = told else {
            return;
        };
        let code = answer[3] & 0x0f;
        // A signed message wants a signed answer (RFC 8945 §5.4). Who lacks the key can't give one
        // (§5.2.1), and anybody else could have given this: it is told again, and remembered.
        if told
            .asked
            .as_ref()
            .is_some_and(|asked| !asked.verify(answer, now()))
        {
            tracing::debug!(secondary = %address, %zone, code, "an answer to NOTIFY without a right signature is ignored");
            if code != 0 {
                told.refused = Some(code);
            }
            return;
        }
        told.next = None;
        if code == 0 {
            self.counts.count(*address, "acknowledged");
        } else {
            self.counts.count(*address, "refused");
            tracing::warn!(secondary = %address, %zone, code, "a secondary refuses NOTIFY: is the zone configured there, with our address and key?");
        }
    }
}

async fn until(next: Option<Instant>) {
    match next {
        Some(next) => sleep_until(next).await,
        None => std::future::pending().await,
    }
}

async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(buffer).await,
        None => std::future::pending().await,
    }
}

/// A socket at an address secondaries know, where there is one that reaches them.
fn socket(any: IpAddr, listening: &[SocketAddr]) -> Option<UdpSocket> {
    let known = listening
        .iter()
        .map(SocketAddr::ip)
        .find(|ip| ip.is_ipv4() == any.is_ipv4() && !ip.is_unspecified() && !ip.is_loopback());
    let bound = std::net::UdpSocket::bind((known.unwrap_or(any), 0)).and_then(|socket| {
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    });
    bound
        .inspect_err(|error| tracing::debug!(%error, %any, "no socket to tell secondaries from"))
        .ok()
}

/// NOTIFY with the new SOA as a hint (RFC 1996 §3.7).
fn message(registry: &Registry, zone: &LowerName, id: u16) -> Option<Vec<u8>> {
    let served = registry.served_at(zone)?;
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[FLAGS, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
    let mut encoder = BinEncoder::with_offset(&mut message, 12);
    zone.emit(&mut encoder).ok()?;
    encoder.emit_u16(wire::SOA).ok()?;
    encoder.emit_u16(wire::IN).ok()?;
    served.soa().emit(&mut encoder).ok()?;
    Some(message)
}
