//! hickory-server's request handling over the registry: what is a question, what is not, and EDNS.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use common::Published;
use hickory_proto::{
    op::{Edns, Header, HeaderCounts, LowerQuery, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Record, RecordType},
};
use hickory_server::{
    net::{
        runtime::{Time, TokioTime},
        xfer::Protocol,
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};

use crate::{
    lookup::{Answer, lookup},
    metrics::{Metrics, Transport},
    reply::{self, Reply, UDP_OCTETS},
};

/// A record in an answer takes at least this: owner pointer, type, class, TTL, data length.
const RECORD_OCTETS: usize = 12;

/// Answers requests from the published registry.
#[derive(Debug)]
pub(crate) struct Authoritative {
    published: Arc<Published>,
    metrics: Arc<Metrics>,
}

impl Authoritative {
    pub(crate) fn new(published: Arc<Published>, metrics: Arc<Metrics>) -> Self {
        Self { published, metrics }
    }

    /// From a message to its response; `None` where silence is right.
    pub(crate) async fn respond(
        &self,
        message: &[u8],
        source: SocketAddr,
        protocol: Protocol,
    ) -> Option<Vec<u8>> {
        // Too short to name an id, or a response: answering either would feed a loop.
        let flags = message.get(2).filter(|_| message.len() >= 12)?;
        if flags & 0x80 != 0 {
            return None;
        }
        let Ok(request) = Request::from_bytes(message.to_vec(), source, protocol) else {
            self.metrics.count(
                None,
                Transport::of(source, protocol),
                None,
                ResponseCode::FormErr,
            );
            return Some(reply::format_error(message));
        };
        let request = Arc::new(request);
        let reply = Reply::to(&request);
        self.handle_request::<_, TokioTime>(&request, reply.clone())
            .await;
        reply.take()
    }
}

#[async_trait]
impl RequestHandler for Authoritative {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_OCTETS);
            // The DO bit comes back as it was sent (RFC 3225 §3).
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let question = match request.queries.queries() {
            [one] => Some(one),
            _ => None,
        };
        let answer = match question {
            // Only version 0 is spoken here (RFC 6891 §6.1.3).
            _ if request.version() > 0 => Err(ResponseCode::BADVERS),
            _ if request.metadata.op_code != OpCode::Query => Err(ResponseCode::NotImp),
            None => Err(ResponseCode::FormErr),
            Some(question) => match (question.query_class(), question.query_type()) {
                (_, RecordType::AXFR | RecordType::IXFR) => Err(ResponseCode::Refused),
                (DNSClass::IN | DNSClass::ANY, kind) => Ok(lookup(
                    &self.published.load(),
                    question.original().name(),
                    kind,
                )),
                _ => Err(ResponseCode::Refused),
            },
        };
        let answer = answer.unwrap_or_else(refusal);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;

        let transport = Transport::of(request.src(), request.protocol());
        let kind = question.map(LowerQuery::query_type);
        self.metrics
            .count(answer.zone.as_ref(), transport, kind, answer.code);

        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        // A set this large can't fit a datagram: TCP has it, and nobody pays for encoding it twice.
        let hopeless = request.protocol() == Protocol::Udp
            && answer.answers.len() * RECORD_OCTETS > usize::from(request.max_payload());
        let sent = if hopeless {
            metadata.truncation = true;
            response
                .send_response(builder.build_no_records(metadata))
                .await
        } else {
            let none: [&Record; 0] = [];
            let message = builder.build(
                metadata,
                answer.answers.iter(),
                answer.authorities.iter(),
                none,
                answer.additionals.iter(),
            );
            response.send_response(message).await
        };
        sent.unwrap_or_else(|error| {
            tracing::warn!(%error, "a DNS answer could not be encoded");
            metadata.response_code = ResponseCode::ServFail;
            Header {
                metadata,
                counts: HeaderCounts::default(),
            }
            .into()
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use common::{Registry, config::Addresses};
    use hickory_proto::{
        op::{Message, MessageType, Query},
        rr::Name,
    };
    use proptest::prelude::*;

    fn respond(message: &[u8], protocol: Protocol) -> Option<Vec<u8>> {
        let addresses = Addresses {
            ipv4: Some([192, 0, 2, 1].into()),
            ipv6: None,
        };
        let published = Published::new(Arc::new(Registry::empty(addresses)));
        let metrics = Metrics::register(&published, &prometheus::Registry::new()).unwrap();
        let handler = Authoritative::new(published, metrics);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(handler.respond(message, ([127, 0, 0, 1], 5_353).into(), protocol))
    }

    fn sound(message: &[u8], answer: Option<Vec<u8>>) -> bool {
        answer.is_none_or(|answer| {
            answer.len() >= 12 && answer[..2] == message[..2] && answer[2] & 0x80 != 0
        })
    }

    proptest! {
        #[test]
        fn any_octets_get_a_response_or_silence(octets in prop::collection::vec(any::<u8>(), 0..120)) {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                prop_assert!(sound(&octets, respond(&octets, protocol)));
            }
        }

        #[test]
        fn a_question_with_octets_changed_gets_a_response_or_silence(changes in prop::collection::vec((0_usize..60, any::<u8>()), 0..4), cut in 0_usize..60) {
            let mut message = Message::new(7, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(Name::from_ascii("a.web.example.").unwrap(), RecordType::A));
            message.set_edns(Edns::new());
            let mut octets = message.to_vec().unwrap();
            for (at, octet) in changes {
                if let Some(place) = octets.get_mut(at) {
                    *place = octet;
                }
            }
            octets.truncate(octets.len().max(cut) - cut.min(octets.len()).min(20));
            prop_assert!(sound(&octets, respond(&octets, Protocol::Udp)));
        }
    }
}
