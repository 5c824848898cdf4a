//! From the octets of a question to the octets of its answer.
//!
//! The common question is parsed in place, its name found in one hash set, and the answer that stands
//! ready copied behind it: no allocation, no lock, no log line. Everything else goes to
//! [`general`] and comes back here to be cut to size, limited and counted, so that both
//! ways end alike.

use std::{
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::{SystemTime, UNIX_EPOCH},
};

use common::{
    Published, Registry,
    answers::{Head, Out, Question},
};
use hickory_server::net::xfer::Protocol;

use crate::{
    cookie::{Cookies, Standing},
    edns::{self, ExtendedError, Opt},
    general,
    limit::{Like, Limiter, Verdict},
    metrics::Tally,
    transfer::{self, Received, Transfers},
};

const HEADER_OCTETS: usize = 12;
/// A name's octets (RFC 1035 §2.3.4), and how many labels they can be.
const NAME_OCTETS: usize = 255;
const LABELS: usize = 128;
const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const CD: u8 = 0x10;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;
const DS: u16 = 43;
const IN: u16 = 1;
/// The class of all classes, and the type of all types.
const ANY: u16 = 255;

/// What carries a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams, whose source may be anybody's.
    Udp,
    /// A connection.
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484).
    Https,
}

/// Who asks, how, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) source: SocketAddr,
    pub(crate) transport: Transport,
    /// Seconds since 1970, modulo 2^32.
    pub(crate) now: u32,
}

/// Answers questions from the published registry; all workers share one.
pub(crate) struct Responder {
    pub(crate) published: Arc<Published>,
    cookies: Cookies,
    limiter: Limiter,
    /// What NSID tells (RFC 5001); empty tells nothing.
    identity: Box<[u8]>,
    pub(crate) transfers: Arc<Transfers>,
}

/// A message, and the world it is answered from.
#[derive(Clone, Copy)]
pub(crate) struct Query<'q> {
    pub(crate) world: &'q Registry,
    pub(crate) message: &'q [u8],
    pub(crate) asked: &'q Asked,
}

/// What each thread that answers has for itself.
pub(crate) struct Worker {
    tally: Tally,
    scratch: Scratch,
}

impl Worker {
    pub(crate) fn new(tally: Tally) -> Self {
        Self {
            tally,
            scratch: Scratch {
                name: [0; NAME_OCTETS],
                starts: [0; LABELS],
            },
        }
    }

    /// Counts by the zones of this registry from now on.
    pub(crate) fn follow(&mut self, world: &Registry) {
        self.tally.follow(world);
    }
}

/// The name of a question, lower-cased.
struct Scratch {
    name: [u8; NAME_OCTETS],
    starts: [u8; LABELS],
}

/// A question read in place.
struct Read {
    octets: usize,
    labels: usize,
    kind: u16,
    class: u16,
    /// Where the question ends in the message.
    end: usize,
}

impl Scratch {
    /// Reads the name at the start of the question section, lower-cased, with type and class.
    /// Compression has nothing to point at there.
    #[inline]
    fn read(&mut self, message: &[u8]) -> Option<Read> {
        let question = message.get(HEADER_OCTETS..)?;
        let (mut at, mut labels) = (0, 0);
        loop {
            let length = usize::from(*question.get(at)?);
            if length == 0 {
                break;
            }
            if length > 63 {
                return None;
            }
            let next = at + 1 + length;
            let label = question.get(at..next)?;
            let lower = self.name.get_mut(at..next)?;
            *self.starts.get_mut(labels)? = u8::try_from(at).ok()?;
            // A length is below every letter: lower-casing leaves it alone.
            for (lower, octet) in lower.iter_mut().zip(label) {
                *lower = octet.to_ascii_lowercase();
            }
            labels += 1;
            at = next;
        }
        *self.name.get_mut(at)? = 0;
        let [k1, k2, c1, c2] = *question.get(at + 1..at + 5)?.first_chunk()?;
        Some(Read {
            octets: at + 1,
            labels,
            kind: u16::from_be_bytes([k1, k2]),
            class: u16::from_be_bytes([c1, c2]),
            end: HEADER_OCTETS + at + 5,
        })
    }

    fn question(&self, read: &Read, opt: Option<&Opt>) -> Question<'_> {
        Question {
            name: &self.name[..read.octets],
            starts: &self.starts[..read.labels],
            kind: read.kind,
            dnssec: opt.is_some_and(|opt| opt.dnssec),
        }
    }
}

impl Responder {
    pub(crate) fn new(
        published: Arc<Published>,
        cookies: Cookies,
        limiter: Limiter,
        identity: &str,
        transfers: Arc<Transfers>,
    ) -> Self {
        Self {
            published,
            cookies,
            limiter,
            identity: identity.as_bytes().into(),
            transfers,
        }
    }

    /// Writes the answer to a message into `out`: how many octets; 0 where silence is right.
    #[inline]
    pub(crate) fn respond(&self, query: &Query<'_>, worker: &mut Worker, out: &mut [u8]) -> usize {
        if !asks(query.message) {
            return 0;
        }
        self.quick(query, worker, out)
            .unwrap_or_else(|| self.uncommon(query, worker, out))
    }

    /// An uncommon message: signed, from a secondary, or anything else. Streams look for transfers
    /// themselves, since those are more than one message.
    #[cold]
    fn uncommon(&self, query: &Query<'_>, worker: &mut Worker, out: &mut [u8]) -> usize {
        let Query { message, asked, .. } = *query;
        let answer = match self
            .transfers
            .receive(message, asked.source, asked.transport)
        {
            Received::Ordinary => {
                return self.general(query, worker, out);
            }
            Received::Signed(question, session, most) => {
                let stripped = Query {
                    message: &question,
                    ..*query
                };
                let length = self.respond(&stripped, worker, out);
                if length == 0 {
                    return 0;
                }
                let answer = out[..length].to_vec();
                transfer::signed(answer, &question, session, most)
            }
            Received::Answer(answer) => answer,
            // One message has to answer all here.
            Received::Transfer(transfer) => transfer.refusal(),
        };
        // What never came to `finish` is limited too: much of it is errors, which may be longer than what
        // was asked.
        let source = asked.source.ip();
        if asked.transport == Transport::Udp
            && self.limiter.applies(source)
            && self.limiter.judge(source, Like::Error, asked.now) != Verdict::Send
        {
            worker.tally.dropped();
            return 0;
        }
        let mut out = Out::after(out, 0);
        out.put(&answer);
        out.length()
    }

    /// The way of common questions; `None` is for the general path.
    #[inline]
    pub(crate) fn quick(
        &self,
        query: &Query<'_>,
        worker: &mut Worker,
        out: &mut [u8],
    ) -> Option<usize> {
        let message = query.message;
        let [_, _, flags, _, 0, 1, 0, 0, 0, 0, 0, extra, ..] = *message else {
            return None;
        };
        if flags & OPCODE != 0 {
            return None;
        }
        let read = worker.scratch.read(message)?;
        if read.class != IN || is_special(read.kind) {
            return None;
        }
        let opt = match extra {
            0 if message.len() == read.end => None,
            1 => {
                let (opt, length) = Opt::read(message.get(read.end..)?).ok()??;
                if read.end + length != message.len() || opt.version != 0 {
                    return None;
                }
                Some(opt)
            }
            _ => return None,
        };
        let ready = self.ready(query, worker, &read, opt.as_ref(), out)?;
        Some(self.finish(&worker.tally, ready))
    }

    /// The answer that stands ready for a question.
    #[inline]
    fn ready<'a>(
        &self,
        query: &Query<'a>,
        worker: &'a Worker,
        read: &Read,
        opt: Option<&'a Opt>,
        out: &'a mut [u8],
    ) -> Option<Answer<'a>> {
        let question = worker.scratch.question(read, opt);
        let mut out = Out::after(out, 0);
        out.put(&query.message[..read.end]);
        let mut ending = Ending {
            asked: query.asked,
            message: query.message,
            opt,
            question_end: read.end,
            code_high: 0,
            zone: None,
            kind: Some(read.kind),
            name: question.name,
            error: None,
        };
        let head = match query.world.nearest_octets(question.name, question.starts) {
            // DS at an apex is the parent's, which may be ours too (RFC 4035 §3.1.4.1).
            Some((_, _, 0)) if read.kind == DS => return None,
            Some((zone, served, apex_at)) => {
                ending.zone = Some(zone);
                served.answers.give(served, &question, apex_at, &mut out)?
            }
            None => {
                ending.error = Some(ExtendedError::NotAuthoritative);
                Head {
                    code: REFUSED,
                    ..Head::default()
                }
            }
        };
        Some(Answer { head, ending, out })
    }

    /// The way of everything else. A panic in a library on some odd message costs that message alone.
    #[cold]
    pub(crate) fn general(&self, query: &Query<'_>, worker: &mut Worker, out: &mut [u8]) -> usize {
        let Query {
            world,
            message,
            asked,
        } = *query;
        let read = worker.scratch.read(message);
        let scanned = Opt::scan(message);
        // A large answer is not put together for whoever makes a question look odd: it stands ready.
        if let (Some(read), Ok(opt)) = (&read, &scanned)
            && is_plain(message, read, opt.as_ref())
            && let Some(ready) = self.ready(query, worker, read, opt.as_ref(), out)
            && ready.head.large
        {
            return self.finish(&worker.tally, ready);
        }
        let protocol = match asked.transport {
            Transport::Udp => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        // A name that points somewhere can only point at the header, which is not the same in an answer.
        let pointing = read.is_none() && message[4..6] != [0, 0];
        let (opt, response) = match scanned {
            _ if general::is_unheard_of(message) => (None, general::not_implemented(message)),
            Ok(opt) if !pointing => {
                let respond =
                    || general::respond(world, message, opt.as_ref(), asked.source, protocol);
                let Ok(response) = catch_unwind(AssertUnwindSafe(respond)) else {
                    tracing::error!("a DNS message made a library panic; it got no answer");
                    return 0;
                };
                (opt, response)
            }
            _ => (None, general::format_error(message)),
        };
        let mut out = Out::after(out, 0);
        let (question, rest) = response
            .octets
            .split_at_checked(response.question_end)
            .unwrap_or_default();
        out.put(question);
        let head = out.put_answer(rest, response.head);
        // Anybody can make up names below a wildcard or a delegation: they count together.
        let name = read
            .map(|read| worker.scratch.question(&read, None))
            .filter(|question| {
                let zone = world.nearest_octets(question.name, question.starts);
                zone.is_some_and(|(_, served, _)| served.answers.holds(question.name))
            })
            .map_or(&[][..], |question| question.name);
        let ending = Ending {
            asked,
            message,
            opt: opt.as_ref().filter(|_| response.readable),
            question_end: response.question_end,
            code_high: response.code_high,
            zone: response.zone,
            kind: response.kind.map(u16::from),
            name,
            error: response.error,
        };
        self.finish(&worker.tally, Answer { head, ending, out })
    }

    /// Cuts an answer to what its transport takes, limits it, writes header and OPT, counts it.
    #[inline]
    fn finish(&self, tally: &Tally, answer: Answer<'_>) -> usize {
        let Answer {
            mut head,
            ending,
            mut out,
        } = answer;
        let ending = &ending;
        let Ending { asked, opt, .. } = *ending;
        let (standing, cookie) = edns::greet(opt, &self.cookies, asked.source.ip(), asked.now);
        let datagram = asked.transport == Transport::Udp;
        let most = if datagram {
            Opt::datagram_octets(opt)
        } else {
            usize::from(u16::MAX)
        };
        // A client that sent a cookie gets one back with every answer (RFC 7873 §5.2).
        let reserved = match (opt, cookie) {
            (None, _) => 0,
            (Some(_), None) => edns::FIXED_OCTETS,
            (Some(_), Some(_)) => edns::FIXED_OCTETS + edns::COOKIE_OCTETS,
        };
        // What is only there for convenience goes before an answer is cut (RFC 2181 §9).
        if !out.is_full() && out.length() + reserved > most && head.extra > 0 {
            out.cut(out.length() - usize::from(head.extra));
            head.counts[2] = 0;
        }
        let stranger = datagram && standing == Standing::Unknown;
        let mut cut = out.is_full() || out.length() + reserved > most || stranger && head.large;
        if stranger && self.limiter.applies(asked.source.ip()) {
            match self.limit(head, ending) {
                Verdict::Send => {}
                Verdict::Slip => cut = true,
                Verdict::Drop => {
                    tally.dropped();
                    return 0;
                }
            }
        }
        // RD and CD are bits of queries; in other kinds of messages nobody knows what they mean.
        let (rd, cd) = match ending.message[2] & OPCODE {
            0 => (RD, CD),
            _ => (0, 0),
        };
        let mut flags = QR | ending.message[2] & (OPCODE | rd) | head.authoritative;
        if cut {
            // Half a set helps nobody (RFC 2181 §9); the OPT stays (RFC 6891 §7).
            out.cut(ending.question_end);
            head.counts = [0; 3];
            flags |= TC;
        }
        if opt.is_some() {
            head.counts[2] += 1;
            let reply = edns::Reply {
                code_high: ending.code_high,
                dnssec: opt.is_some_and(|opt| opt.dnssec),
                cookie: cookie.as_ref(),
                // What is cut short is not made longer.
                nsid: (opt.is_some_and(|opt| opt.nsid) && !self.identity.is_empty() && !cut)
                    .then_some(&*self.identity),
                error: ending.error.filter(|_| !cut),
            };
            reply.put(&mut out, most);
        }
        tally.count(ending.zone, asked, ending.kind, head.code, ending.code_high);
        let length = out.length();
        let header = out.written();
        header[2] = flags;
        header[3] = head.code | ending.message[3] & cd;
        for (at, count) in [6, 8, 10].into_iter().zip(head.counts) {
            header[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        length
    }

    #[cold]
    fn limit(&self, head: Head, ending: &Ending<'_>) -> Verdict {
        let like = match (head.code, ending.zone) {
            (0, Some(_)) if !ending.name.is_empty() => Like::Name(ending.name),
            (0 | NXDOMAIN, Some(zone)) => Like::Zone(zone),
            _ => Like::Error,
        };
        self.limiter
            .judge(ending.asked.source.ip(), like, ending.asked.now)
    }
}

/// An answer, but for its end.
struct Answer<'m> {
    head: Head,
    ending: Ending<'m>,
    out: Out<'m>,
}

/// What the end of an answer needs to know of its beginning.
struct Ending<'m> {
    asked: &'m Asked,
    message: &'m [u8],
    opt: Option<&'m Opt>,
    question_end: usize,
    code_high: u8,
    zone: Option<usize>,
    kind: Option<u16>,
    name: &'m [u8],
    error: Option<ExtendedError>,
}

/// Whether a message wants an answer: too short to name an id, or a response, and answering would feed a
/// loop.
#[inline]
fn asks(message: &[u8]) -> bool {
    let flags = message.get(2).is_some_and(|flags| flags & QR == 0);
    flags && message.len() >= HEADER_OCTETS
}

/// Types that are no data: OPT, signatures and denials asked for by name, and the range of question and
/// meta types (RFC 6895 §3.1).
fn is_special(kind: u16) -> bool {
    matches!(kind, 0 | 41 | 46 | 47 | 128..=255)
}

/// Whether a question could have an answer that stands ready, whatever else is in its message.
fn is_plain(message: &[u8], read: &Read, opt: Option<&Opt>) -> bool {
    message[2] & OPCODE == 0
        && message[4..6] == [0, 1]
        && matches!(read.class, IN | ANY)
        && (read.kind == ANY || !is_special(read.kind))
        && opt.is_none_or(|opt| opt.version == 0)
}

/// A worker with room for one answer.
pub(crate) struct Desk {
    worker: Worker,
    answer: Box<[u8]>,
}

impl Desk {
    pub(crate) fn new(tally: Tally) -> Self {
        Self {
            worker: Worker::new(tally),
            answer: vec![0; usize::from(u16::MAX)].into(),
        }
    }

    /// The answer to a message; empty where silence is right.
    pub(crate) fn answer(&mut self, responder: &Responder, message: &[u8], asked: &Asked) -> &[u8] {
        self.with(responder, message, asked, Responder::respond)
    }

    pub(crate) fn with(
        &mut self,
        responder: &Responder,
        message: &[u8],
        asked: &Asked,
        answer: impl FnOnce(&Responder, &Query<'_>, &mut Worker, &mut [u8]) -> usize,
    ) -> &[u8] {
        let world = responder.published.load();
        self.worker.follow(&world);
        let query = Query {
            world: &world,
            message,
            asked,
        };
        let length = answer(responder, &query, &mut self.worker, &mut self.answer);
        &self.answer[..length]
    }
}

/// Answers messages one by one, for those who bring their own transport: DNS over HTTPS.
#[derive(Clone)]
pub struct Answerer {
    responder: Arc<Responder>,
    /// One for each thread that may ask.
    desks: Arc<[Mutex<Desk>]>,
}

impl std::fmt::Debug for Answerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answerer").finish_non_exhaustive()
    }
}

impl Answerer {
    pub(crate) fn new(responder: Arc<Responder>, tallies: impl Iterator<Item = Tally>) -> Self {
        Self {
            responder,
            desks: tallies.map(|tally| Mutex::new(Desk::new(tally))).collect(),
        }
    }

    /// The response to a message from an address; `None` where silence is right.
    pub fn answer(&self, message: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
        self.with(message, source, Transport::Https, Responder::respond)
    }

    /// The same over some transport, by the way of common questions (`None` when it hands the message
    /// over) and by the general one: for tests that compare them.
    #[doc(hidden)]
    pub fn both_ways(
        &self,
        message: &[u8],
        source: SocketAddr,
        transport: Transport,
    ) -> [Option<Vec<u8>>; 2] {
        if !asks(message) {
            return [None, None];
        }
        let quick =
            |responder: &Responder, query: &Query<'_>, worker: &mut Worker, out: &mut [u8]| {
                responder.quick(query, worker, out).unwrap_or(0)
            };
        [
            self.with(message, source, transport, quick),
            self.with(message, source, transport, Responder::general),
        ]
    }

    fn with(
        &self,
        message: &[u8],
        source: SocketAddr,
        transport: Transport,
        answer: impl FnOnce(&Responder, &Query<'_>, &mut Worker, &mut [u8]) -> usize,
    ) -> Option<Vec<u8>> {
        let asked = Asked {
            source,
            transport,
            now: now(),
        };
        let free = self.desks.iter().find_map(|desk| match desk.try_lock() {
            Ok(desk) => Some(desk),
            // A message that failed on it left nothing there that the next one would read.
            Err(TryLockError::Poisoned(desk)) => Some(desk.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        let mut desk = match (free, self.desks.first()) {
            (Some(desk), _) => desk,
            (None, Some(desk)) => desk.lock().unwrap_or_else(PoisonError::into_inner),
            (None, None) => return None,
        };
        let answer = desk.with(&self.responder, message, &asked, answer);
        (!answer.is_empty()).then(|| answer.to_vec())
    }
}

/// The clock's seconds, for cookies and limits.
pub(crate) fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(0)
}

/// Whether an address can be answered: port 0 can't, and a multicast or broadcast source only
/// amplifies.
#[inline]
pub(crate) fn answerable(source: SocketAddr) -> bool {
    let strange = match source.ip() {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_multicast() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_multicast() || v6.is_unspecified(),
    };
    source.port() != 0 && !strange
}
