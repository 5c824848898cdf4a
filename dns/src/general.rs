//! The general path: hickory-server reads the request, [`lookup`] answers it from the registry, and
//! hickory-server writes the response. It takes whatever the ready answers don't cover: aliases,
//! wildcards, delegations, other opcodes and classes, messages of unusual shape.

use std::net::SocketAddr;

use common::{Answer, Registry, answers::Head, lookup, wire::Writer};
use hickory_proto::{
    op::{Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Record, RecordType},
    serialize::binary::BinEncoder,
};
use hickory_server::{net::xfer::Protocol, server::Request, zone_handler::MessageResponseBuilder};

use crate::edns::{ExtendedError, Opt};

const HEADER_OCTETS: usize = 12;
/// hickory-proto's encoder compresses about this many names and then no more.
const COMPRESSED_BY_HICKORY: usize = 60;

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
    let Ok(request) = Request::from_bytes(message.to_vec(), source, protocol) else {
        return format_error(message);
    };
    let question = match request.queries.queries() {
        [one] => Some(one),
        _ => None,
    };
    let kind = question.map(|question| question.query_type());
    let dnssec = opt.is_some_and(|opt| opt.dnssec);
    let mut error = None;
    let answer = match question {
        // Only version 0 is spoken here (RFC 6891 §6.1.3).
        _ if opt.is_some_and(|opt| opt.version > 0) => Err(ResponseCode::BADVERS),
        _ if request.metadata.op_code != OpCode::Query => {
            error = Some(ExtendedError::NotSupported);
            Err(ResponseCode::NotImp)
        }
        // A query asks one question (RFC 9619 §4).
        None => Err(ResponseCode::FormErr),
        Some(question) => match (question.query_class(), question.query_type()) {
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
    let Some(octets) = encode(&request, metadata, &answer) else {
        tracing::warn!(?kind, "a DNS answer could not be encoded");
        return Response {
            kind,
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
            large: octets.len() > 512 + HEADER_OCTETS && !answer.answers.is_empty() && !dnssec,
        },
        code_high: answer.code.high(),
        octets,
        zone: answer.zone,
        kind,
        error,
        readable: true,
    }
}

fn encode(request: &Request, metadata: Metadata, answer: &Answer) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(512);
    let builder = MessageResponseBuilder::from_message_request(request);
    if answer.answers.len() <= COMPRESSED_BY_HICKORY {
        let none: [&Record; 0] = [];
        let message = builder.build(
            metadata,
            answer.answers.iter(),
            answer.authorities.iter(),
            none,
            answer.additionals.iter(),
        );
        message
            .destructive_emit(&mut BinEncoder::new(&mut octets))
            .ok()?;
        return Some(octets);
    }
    builder
        .build_no_records(metadata)
        .destructive_emit(&mut BinEncoder::new(&mut octets))
        .ok()?;
    let mut writer = Writer::new(usize::from(u16::MAX));
    let [question] = request.queries.queries() else {
        return None;
    };
    writer.question(question.original().name(), question.query_type().into());
    let sections = [&answer.answers, &answer.authorities, &answer.additionals];
    for (at, records) in [6, 8, 10].into_iter().zip(sections) {
        if !records.iter().all(|record| writer.record(record)) {
            return None;
        }
        let count = u16::try_from(records.len()).ok()?;
        octets[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
    let mut whole = writer.into_octets();
    whole[..HEADER_OCTETS].copy_from_slice(octets.get(..HEADER_OCTETS)?);
    Some(whole)
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
