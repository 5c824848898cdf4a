//! The general path: hickory-server reads the request and makes the head of the response, [`lookup()`]
//! answers it from the registry, and [`Writer`] writes the records. It takes whatever the ready answers don't cover: aliases,
//! wildcards, delegations, other opcodes and classes, messages of unusual shape.

use std::net::SocketAddr;

use common::{
    Answer, Registry,
    answers::{Head, extra, is_large},
    lookup,
    wire::{Writer, wire},
};
use hickory_proto::{
    op::{Metadata, OpCode, ResponseCode},
    rr::{DNSClass, RecordType},
    serialize::binary::BinEncoder,
};
use hickory_server::{net::xfer::Protocol, server::Request, zone_handler::MessageResponseBuilder};

use crate::{
    edns::{ExtendedError, Opt},
    wire::after_name,
};

const HEADER_OCTETS: usize = 12;
const OPCODE: u8 = 0x78;

/// A response without its OPT record.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) octets: Vec<u8>,
    /// Where the question ends.
    pub(crate) question_end: usize,
    pub(crate) head: Head,
    /// The upper eight bits of the response code.
    pub(crate) code_high: u8,
    pub(crate) zone: Option<usize>,
    pub(crate) kind: Option<RecordType>,
    pub(crate) error: Option<ExtendedError>,
    /// Whether the request could be read: else the rest of it can't be trusted.
    pub(crate) readable: bool,
}

/// Answers a message of at least a header that is no response.
pub(crate) fn respond(
    world: &Registry,
    message: &[u8],
    opt: Option<&Opt>,
    source: SocketAddr,
    protocol: Protocol,
) -> Response {
    // A query asks one question (RFC 9619 §4), or none when it is about its cookie (RFC 7873 §5.4). Not
    // even the questions come back: there could be hundreds.
    if message.get(4..6) != Some(&[0, 1]) {
        let empty = message.get(4..HEADER_OCTETS - 1) == Some(&[0; 7]);
        let about_cookie = opt.is_some_and(|opt| opt.cookie.is_some() && opt.version == 0);
        let query = message.get(2).is_some_and(|flags| flags & OPCODE == 0);
        let code = match opt {
            Some(opt) if opt.version > 0 => ResponseCode::BADVERS,
            _ if empty && about_cookie && query => ResponseCode::NoError,
            _ => ResponseCode::FormErr,
        };
        return code_only(message, code);
    }
    // Header and question alone: options and records we don't know are nobody's format errors
    // (RFC 6891 §6.1.2), and those we know have been read.
    let question = after_name(message, HEADER_OCTETS).and_then(|end| message.get(..end + 4));
    let Some(mut question) = question.map(<[u8]>::to_vec) else {
        return format_error(message);
    };
    question[HEADER_OCTETS - 6..HEADER_OCTETS].fill(0);
    let Ok(request) = Request::from_bytes(question, source, protocol) else {
        return format_error(message);
    };
    let [question] = request.queries.queries() else {
        return format_error(message);
    };
    // Compression would have nothing but the header to point at.
    if request.queries.as_bytes().len() != wire(question.original().name()).len() + 4 {
        return format_error(message);
    }
    let kind = question.query_type();
    let dnssec = opt.is_some_and(|opt| opt.dnssec);
    let mut error = None;
    let answer = match () {
        // Only version 0 is spoken here (RFC 6891 §6.1.3).
        _ if opt.is_some_and(|opt| opt.version > 0) => Err(ResponseCode::BADVERS),
        _ if request.metadata.op_code != OpCode::Query => {
            error = Some(ExtendedError::NotSupported);
            Err(ResponseCode::NotImp)
        }
        _ => match (question.query_class(), kind) {
            (_, RecordType::AXFR | RecordType::IXFR) => {
                error = Some(ExtendedError::Prohibited);
                Err(ResponseCode::Refused)
            }
            (DNSClass::IN | DNSClass::ANY, kind) => {
                Ok(lookup(world, question.original().name(), kind, dnssec))
            }
            // Version and name of the server are nobody's business.
            _ => Err(ResponseCode::Refused),
        },
    };
    let answer = answer.unwrap_or_else(refusal);
    if answer.code == ResponseCode::Refused && answer.zone.is_none() && error.is_none() {
        error = Some(ExtendedError::NotAuthoritative);
    }
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = answer.code;
    metadata.authoritative = answer.authoritative;
    let Some((octets, [answers_end, extra_at])) = encode(&request, metadata, &answer) else {
        tracing::warn!(?kind, "a DNS answer could not be encoded");
        return Response {
            kind: Some(kind),
            ..code_only(message, ResponseCode::ServFail)
        };
    };
    let count = |at: usize| match octets.get(at..at + 2) {
        Some(&[a, b]) => u16::from_be_bytes([a, b]),
        _ => 0,
    };
    Response {
        question_end: (HEADER_OCTETS + request.queries.as_bytes().len()).min(octets.len()),
        head: Head {
            authoritative: octets.get(2).map_or(0, |flags| flags & 0x04),
            code: answer.code.low(),
            counts: [count(6), count(8), count(10)],
            extra: extra(octets.len() - extra_at, &answer),
            large: is_large(answers_end, &answer),
        },
        code_high: answer.code.high(),
        octets,
        zone: answer.zone,
        kind: Some(kind),
        error,
        readable: true,
    }
}

/// The header is hickory-server's; the records are written by ours, whose compression is that of the
/// ready answers: both ways find the same answer too large. Also tells where the first two
/// sections end.
fn encode(request: &Request, metadata: Metadata, answer: &Answer) -> Option<(Vec<u8>, [usize; 2])> {
    let [question] = request.queries.queries() else {
        return None;
    };
    let mut header = Vec::with_capacity(HEADER_OCTETS + request.queries.as_bytes().len());
    MessageResponseBuilder::from_message_request(request)
        .build_no_records(metadata)
        .destructive_emit(&mut BinEncoder::new(&mut header))
        .ok()?;
    let mut writer = Writer::new(usize::from(u16::MAX));
    writer.question(question.original().name(), question.query_type().into());
    let sections = [&answer.answers, &answer.authorities, &answer.additionals];
    let mut ends = Vec::with_capacity(3);
    for (at, records) in [6, 8, 10].into_iter().zip(sections) {
        if !records.iter().all(|record| writer.record(record)) {
            return None;
        }
        let count = u16::try_from(records.len()).ok()?;
        header[at..at + 2].copy_from_slice(&count.to_be_bytes());
        ends.push(writer.octets().len());
    }
    let mut octets = writer.into_octets();
    // The class is as it was asked.
    octets.get_mut(..header.len())?.copy_from_slice(&header);
    Some((octets, *ends.first_chunk()?))
}

fn refusal(code: ResponseCode) -> Answer {
    Answer {
        code,
        authoritative: false,
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
        zone: None,
    }
}

/// Whether nobody has said what a message of this opcode is.
pub(crate) fn is_unheard_of(message: &[u8]) -> bool {
    // Query, status, notify, update.
    let known = |flags: &u8| matches!((flags & OPCODE) >> 3, 0 | 2 | 4 | 5);
    !message.get(2).is_some_and(known)
}

/// NOTIMP for such a message, of which the header alone can be understood (RFC 8906 §3.1.4).
pub(crate) fn not_implemented(message: &[u8]) -> Response {
    Response {
        readable: false,
        ..code_only(message, ResponseCode::NotImp)
    }
}

/// FORMERR for a message whose header alone could be read: the header comes back, nothing else.
pub(crate) fn format_error(message: &[u8]) -> Response {
    Response {
        readable: false,
        ..code_only(message, ResponseCode::FormErr)
    }
}

fn code_only(message: &[u8], code: ResponseCode) -> Response {
    let mut octets = message.get(..HEADER_OCTETS).unwrap_or_default().to_vec();
    if let Some(counts) = octets.get_mut(4..) {
        counts.fill(0);
    }
    Response {
        question_end: octets.len(),
        octets,
        head: Head {
            code: code.low(),
            ..Head::default()
        },
        code_high: code.high(),
        zone: None,
        kind: None,
        error: None,
        readable: true,
    }
}
