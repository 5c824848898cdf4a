//! Whole zones and their changes for secondaries (RFC 5936, RFC 1995), and what else comes signed.
//!
//! A transfer holds the registry it began with and makes one message at a time: a zone of a million
//! names takes no more memory than one of ten.

use std::{
    collections::BTreeMap,
    iter::Peekable,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{
    Published, Registry,
    authority::Authority,
    difference::Difference,
    journal::Journal,
    metrics::{Computed, Family, Row},
    serial::later,
    wire::Writer,
};
use hickory_proto::{
    rr::{LowerName, Name, Record},
    serialize::binary::{BinDecodable, BinDecoder},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::{
    edns::UDP_OCTETS,
    engine::{Asked, Transport},
    metrics::Tally,
    tsig::{self, Opened, Session},
    wire::{self, Cursor, HEADER},
};

/// Pointers of compressed names reach no further than this (RFC 1035 §4.1.4), so larger messages
/// gain nothing (RFC 5936 §3.4).
const MESSAGE_OCTETS: usize = 16 << 10;
/// Transfers at once, in all; those over it wait.
const TRANSFERS: usize = 8;
/// How long one waits for its turn before it is refused.
const TURN: Duration = Duration::from_secs(5);
const OPT_OCTETS: usize = 11;

const FORMERR: u8 = 1;
const REFUSED: u8 = 5;
const NOTAUTH: u8 = 9;

const TRANSFERRED: Family = Family {
    name: "nuage_dns_transfers_total",
    help: "Zone transfers by zone, what was sent (axfr: all, ixfr: changes, soa: nothing new) and result.",
    labels: &["zone", "kind", "result"],
    counter: true,
};

/// What is to be done with a message.
#[derive(Debug)]
pub(crate) enum Received {
    /// What is done with every other question.
    Ordinary,
    /// The same with this message, and the answer signed: no more octets than this.
    Signed(Vec<u8>, Session, usize),
    /// This goes back.
    Answer(Vec<u8>),
    /// A zone or its changes go back, over a stream.
    Transfer(Box<Transfer>),
}

/// Who may transfer what, and how many do.
#[derive(Debug)]
pub(crate) struct Transfers {
    published: Arc<Published>,
    journal: Arc<Journal>,
    /// Requests and answers are counted beside all others.
    tally: Mutex<Tally>,
    turns: Semaphore,
    /// By zone, kind and result; zones that are gone leave it with the next scrape.
    counts: Mutex<BTreeMap<(String, &'static str, &'static str), u64>>,
}

impl Transfers {
    pub(crate) fn register(
        published: &Arc<Published>,
        journal: Arc<Journal>,
        tally: Tally,
        registry: &prometheus::Registry,
    ) -> prometheus::Result<Arc<Self>> {
        let transfers = Arc::new(Self {
            published: Arc::clone(published),
            journal,
            tally: Mutex::new(tally),
            turns: Semaphore::new(TRANSFERS),
            counts: Mutex::default(),
        });
        let counted = Arc::clone(&transfers);
        let compute = move || {
            let mut counts = counted
                .counts
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let registry = counted.published.load();
            let served: Vec<String> = registry
                .served
                .iter()
                .map(|zone| label(&zone.authority))
                .collect();
            counts.retain(|(zone, ..), _| zone == OTHER || served.contains(zone));
            #[expect(clippy::cast_precision_loss, reason = "counters are doubles")]
            let rows: Vec<Row<'_>> = counts
                .iter()
                .map(|((zone, kind, result), count)| {
                    (vec![zone.as_str(), *kind, *result], *count as f64)
                })
                .collect();
            vec![TRANSFERRED.with_rows(rows)]
        };
        registry.register(Box::new(Computed::new(&[TRANSFERRED], compute)?))?;
        Ok(transfers)
    }

    /// Looks at a message before anything else does.
    pub(crate) fn receive(
        self: &Arc<Self>,
        message: &[u8],
        source: SocketAddr,
        over: Transport,
    ) -> Received {
        // Short ones, responses and other opcodes are for others.
        let query = message.len() >= HEADER && message[2] & 0xf8 == 0;
        let ours = || {
            let kind = wire::question_kind(message);
            matches!(kind, Some(wire::AXFR | wire::IXFR)) || tsig::may_be_signed(message)
        };
        if !query || !ours() {
            return Received::Ordinary;
        }
        let opened = tsig::open(message, &self.published.load().secondaries, now());
        match opened {
            Opened::Refused(answer) => {
                self.note(None, source, over, &answer);
                Received::Answer(answer)
            }
            Opened::Unsigned => match self.begin(message, None, source, over) {
                Some(begun) => begun,
                None => Received::Ordinary,
            },
            Opened::Verified {
                mut stripped,
                session,
            } => match self.begin(&stripped, Some(&session), source, over) {
                Some(begun) => begun,
                None => {
                    let offered = offered(&stripped, over);
                    leave_room(&mut stripped, session.octets());
                    Received::Signed(stripped, session, offered)
                }
            },
        }
    }

    /// The transfer a message asks for, or why there is none; `None` for other questions.
    fn begin(
        self: &Arc<Self>,
        message: &[u8],
        session: Option<&Session>,
        source: SocketAddr,
        over: Transport,
    ) -> Option<Received> {
        let question = wire::question(message)?;
        let asked = match question.kind {
            wire::AXFR => "axfr",
            wire::IXFR => "ixfr",
            _ => return None,
        };
        let opt = wire::opt(message);
        // Other versions of EDNS are refused where all are.
        if opt.is_some_and(|opt| opt.ttl & 0x00ff_0000 != 0) {
            return None;
        }
        let name = Name::read(&mut BinDecoder::new(&question.name)).ok()?;
        let apex = LowerName::new(&name);
        let refuse = |zone: &str, code| {
            self.count(zone, asked, "refused");
            let mut answer = wire::bare_answer(message, code);
            if opt.is_some() {
                append_opt(&mut answer);
            }
            sign(&mut answer, session.cloned().as_mut());
            self.note(Some(&apex), source, over, &answer);
            Some(Received::Answer(answer))
        };
        let registry = Arc::clone(&self.published.load());
        let Some(served) = registry.served_at(&apex) else {
            // RFC 5936 §2.2.1
            return refuse(OTHER, NOTAUTH);
        };
        let (zone, serial) = (label(&served.authority), served.serial);
        let key = session.map(Session::key);
        let tls = over == Transport::Tls;
        let allowed =
            question.class == wire::IN && registry.secondaries.allow(&apex, source.ip(), key, tls);
        // There is no AXFR over UDP (RFC 5936 §4.2).
        if !allowed || (question.kind == wire::AXFR && over == Transport::Udp) {
            return refuse(&zone, REFUSED);
        }
        let body = if question.kind == wire::AXFR {
            Body::Whole
        } else {
            match client_serial(message, &question.name) {
                None => return refuse(&zone, FORMERR),
                Some(theirs) => self.changes(&apex, theirs, serial),
            }
        };
        self.note(Some(&apex), source, over, &[0; HEADER]);
        let transfer = Transfer {
            transfers: Arc::clone(self),
            head: [message[0], message[1], wire::QR | AA | (message[2] & RD), 0],
            question: message[HEADER..question.end].to_vec(),
            edns: opt.is_some(),
            session: session.cloned(),
            registry,
            apex,
            zone,
            serial,
            body,
            done: false,
        };
        if over == Transport::Udp {
            let room = opt.map_or(512, |opt| opt.class.clamp(512, UDP_OCTETS));
            let answer = transfer.datagram(usize::from(room));
            return Some(Received::Answer(answer));
        }
        Some(Received::Transfer(Box::new(transfer)))
    }

    /// What to send somebody who has `theirs`.
    fn changes(&self, apex: &LowerName, theirs: u32, ours: u32) -> Body {
        if !later(ours, theirs) {
            return Body::Nothing;
        }
        match self.journal.since(apex, theirs, ours) {
            Some(steps) => Body::Changes(steps),
            None => Body::Whole,
        }
    }

    /// Waits for a turn.
    pub(crate) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        timeout(TURN, self.turns.acquire()).await.ok()?.ok()
    }

    /// Counts request and answer beside all others.
    fn note(&self, zone: Option<&LowerName>, source: SocketAddr, over: Transport, answer: &[u8]) {
        let world = self.published.load();
        let place = zone.and_then(|zone| {
            let mut zones = world.served.iter();
            zones.position(|served| served.authority.apex == *zone)
        });
        let asked = Asked {
            source,
            transport: over,
            now: 0,
        };
        let code = answer.get(3).map_or(0, |code| code & 0x0f);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.follow(&world);
        tally.count(place, &asked, None, code, 0);
    }

    fn count(&self, zone: &str, kind: &'static str, result: &'static str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((zone.to_owned(), kind, result)).or_default() += 1;
    }
}

const OTHER: &str = "other";
const AA: u8 = 0x04;
const RD: u8 = 0x01;

fn label(authority: &Authority) -> String {
    authority.apex.to_string().trim_end_matches('.').to_owned()
}

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// What goes back.
#[derive(Debug)]
enum Body {
    Whole,
    Changes(Vec<Arc<Difference>>),
    Nothing,
}

impl Body {
    fn kind(&self) -> &'static str {
        match self {
            Self::Whole => "axfr",
            Self::Changes(_) => "ixfr",
            Self::Nothing => "soa",
        }
    }
}

/// One transfer, allowed and about to be sent.
#[derive(Debug)]
pub(crate) struct Transfer {
    transfers: Arc<Transfers>,
    /// Id and flags of every message.
    head: [u8; 4],
    question: Vec<u8>,
    edns: bool,
    session: Option<Session>,
    registry: Arc<Registry>,
    apex: LowerName,
    zone: String,
    serial: u32,
    body: Body,
    done: bool,
}

impl Transfer {
    /// The messages, signed where they must be; `None` is where the transfer can't go on.
    pub(crate) fn messages(&self) -> impl Iterator<Item = Option<Vec<u8>>> + Send + '_ {
        let mut session = self.session.clone();
        self.pieces(MESSAGE_OCTETS).map(move |message| {
            let mut message = message?;
            sign(&mut message, session.as_mut());
            Some(message)
        })
    }

    /// The answer when all turns are taken.
    pub(crate) fn refusal(mut self) -> Vec<u8> {
        self.done = true;
        let kind = self.body.kind();
        self.transfers.count(&self.zone, kind, "refused");
        let mut message = self.start(true);
        message[2] &= !AA;
        message[3] = REFUSED;
        self.finish(&mut message, 0);
        sign(&mut message, self.session.clone().as_mut());
        message
    }

    /// To be told when the last message is sent.
    pub(crate) fn sent(mut self) {
        self.done = true;
        let kind = self.body.kind();
        self.transfers.count(&self.zone, kind, "sent");
    }

    /// One message that holds all of it, or else the SOA, by which the client knows that it must ask
    /// over TCP (RFC 1995 §2).
    fn datagram(mut self, most: usize) -> Vec<u8> {
        let whole = |transfer: &Self| {
            let mut pieces = transfer.pieces(most);
            let first = pieces.next().flatten().filter(|first| first.len() <= most);
            first.filter(|_| pieces.next().is_none())
        };
        let message = whole(&self).or_else(|| {
            self.body = Body::Nothing;
            whole(&self)
        });
        let mut message = message.unwrap_or_else(|| {
            let mut bare = self.start(true);
            self.finish(&mut bare, 0);
            bare
        });
        sign(&mut message, self.session.clone().as_mut());
        self.sent();
        message
    }

    fn pieces(&self, most: usize) -> Pieces<'_> {
        Pieces {
            records: self.records().peekable(),
            first: true,
            failed: false,
            most,
            transfer: self,
        }
    }

    /// All records in their order (RFC 5936 §2.2, RFC 1995 §4).
    fn records(&self) -> Box<dyn Iterator<Item = Record> + Send + '_> {
        let Some(served) = self.registry.served_at(&self.apex) else {
            return Box::new(std::iter::empty());
        };
        let soa = || std::iter::once(served.soa());
        match &self.body {
            Body::Nothing => Box::new(soa()),
            Body::Whole => Box::new(served.records().chain(soa())),
            Body::Changes(steps) => {
                let steps = steps.iter();
                let changes = steps.flat_map(|step| step.removed().chain(step.added()));
                Box::new(soa().chain(changes).chain(soa()))
            }
        }
    }

    /// Header and, in the first message (RFC 5936 §2.2.1), the question.
    fn start(&self, first: bool) -> Vec<u8> {
        let mut message = self.head.to_vec();
        message.resize(HEADER, 0);
        if first {
            message[5] = 1;
            message.extend_from_slice(&self.question);
        }
        message
    }

    fn finish(&self, message: &mut Vec<u8>, answers: u16) {
        message[6..8].copy_from_slice(&answers.to_be_bytes());
        if self.edns {
            append_opt(message);
        }
    }

    /// What comes after the records of each message.
    fn tail_octets(&self) -> usize {
        let signature = self.session.as_ref().map_or(0, Session::octets);
        signature + if self.edns { OPT_OCTETS } else { 0 }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.done {
            let kind = self.body.kind();
            self.transfers.count(&self.zone, kind, "failed");
            tracing::warn!(zone = %self.zone, serial = self.serial, kind, "a zone transfer was cut off");
        }
    }
}

/// Puts records into messages.
struct Pieces<'t> {
    transfer: &'t Transfer,
    records: Peekable<Box<dyn Iterator<Item = Record> + Send + 't>>,
    first: bool,
    failed: bool,
    most: usize,
}

impl Iterator for Pieces<'_> {
    type Item = Option<Vec<u8>>;

    fn next(&mut self) -> Option<Option<Vec<u8>>> {
        if self.failed || self.records.peek().is_none() {
            return None;
        }
        let tail = self.transfer.tail_octets();
        let most = self.most.saturating_sub(tail);
        let hard = usize::from(u16::MAX).saturating_sub(tail);
        let start = self.transfer.start(self.first);
        self.first = false;
        let mut writer = Writer::after(start, hard);
        let mut count: u16 = 0;
        while let Some(record) = self.records.peek()
            && writer.record(record)
        {
            self.records.next();
            count = count.saturating_add(1);
            writer.limit(most);
        }
        let mut message = writer.into_octets();
        if count == 0 {
            // Half a zone must not look like a whole one: the connection ends here.
            tracing::error!(zone = %self.transfer.zone, "a record is too large for a zone transfer");
            self.failed = true;
            return Some(None);
        }
        self.transfer.finish(&mut message, count);
        Some(Some(message))
    }
}

fn sign(message: &mut Vec<u8>, session: Option<&mut Session>) {
    if let Some(session) = session {
        session.sign(message, now());
    }
}

fn append_opt(message: &mut Vec<u8>) {
    let [high, low] = UDP_OCTETS.to_be_bytes();
    message.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
    message[11] += 1;
}

/// The serial the client has: in the SOA of the authority section (RFC 1995 §3).
fn client_serial(message: &[u8], zone: &[u8]) -> Option<u32> {
    let soa = wire::record_of(message, 1, wire::SOA)?;
    if Cursor::new(message, soa.start).name()? != zone {
        return None;
    }
    let mut data = Cursor::new(message, soa.data);
    data.skip_name()?;
    data.skip_name()?;
    let serial = data.u32()?;
    (data.at <= soa.end).then_some(serial)
}

/// How many octets the answer to a message may have.
fn offered(message: &[u8], over: Transport) -> usize {
    match over {
        Transport::Udp => {
            wire::opt(message).map_or(512, |opt| usize::from(opt.class.clamp(512, UDP_OCTETS)))
        }
        _ => usize::from(u16::MAX),
    }
}

/// Offers the answer less room, so that its signature has some.
fn leave_room(message: &mut [u8], octets: usize) {
    if let Some(opt) = wire::opt(message) {
        let room = usize::from(opt.class.min(UDP_OCTETS)).saturating_sub(octets);
        let room = u16::try_from(room).unwrap_or(UDP_OCTETS);
        // The size a client offers is the class of its OPT (RFC 6891 §6.1.2).
        message[opt.data - 8..opt.data - 6].copy_from_slice(&room.to_be_bytes());
    }
}

/// The answer to a signed question, signed. Over UDP a full one that can't take the signature is an
/// empty one with TC.
pub(crate) fn signed(
    answer: Vec<u8>,
    question: &[u8],
    mut session: Session,
    most: usize,
) -> Vec<u8> {
    let mut answer = answer;
    if answer.len() + session.octets() > most {
        let code = answer[3] & 0x0f;
        let authoritative = answer[2] & AA;
        answer = wire::bare_answer(question, code);
        answer[2] |= authoritative | TC;
        if wire::opt(question).is_some() {
            append_opt(&mut answer);
        }
    }
    session.sign(&mut answer, now());
    answer
}

const TC: u8 = 0x02;
