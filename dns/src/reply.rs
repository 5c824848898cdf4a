//! A response on the wire, cut to what its transport takes, the OPT record kept (RFC 6891 §7).

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use hickory_proto::{
    op::{Edns, ResponseCode},
    rr::Record,
    serialize::binary::{BinEncodable, BinEncoder},
};
use hickory_server::{
    net::{NetError, xfer::Protocol},
    server::{Request, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponse,
};

/// Largest datagram sent, whatever the client offers: what passes every path unfragmented (DNS flag
/// day 2020).
pub(crate) const UDP_OCTETS: u16 = 1_232;
const HEADER_OCTETS: usize = 12;
const TC: u8 = 0x02;
const QR: u8 = 0x80;

/// Takes the one response to a request.
#[derive(Clone)]
pub(crate) struct Reply {
    request: Arc<Request>,
    encoded: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Reply {
    pub(crate) fn to(request: &Arc<Request>) -> Self {
        Self {
            request: Arc::clone(request),
            encoded: Arc::default(),
        }
    }

    /// The response, once.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        self.encoded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn most_octets(&self) -> usize {
        match self.request.protocol() {
            // 512 without EDNS (RFC 1035 §4.2.1).
            Protocol::Udp => usize::from(self.request.max_payload().min(UDP_OCTETS)),
            _ => usize::from(u16::MAX),
        }
    }
}

#[async_trait]
impl ResponseHandler for Reply {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut edns = response.edns().cloned();
        if let Some(edns) = &mut edns {
            edns.set_rcode_high(response.metadata().response_code.high());
        }
        let mut bytes = Vec::with_capacity(512);
        let info = response.destructive_emit(&mut BinEncoder::new(&mut bytes))?;
        if bytes.len() > self.most_octets() || info.truncation {
            truncate(
                &mut bytes,
                self.request.queries.as_bytes().len(),
                edns.as_ref(),
            )?;
        }
        *self.encoded.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        Ok(info)
    }
}

/// Keeps header, question and OPT; sets TC. Half a set helps nobody (RFC 2181 §9).
fn truncate(
    bytes: &mut Vec<u8>,
    question_octets: usize,
    edns: Option<&Edns>,
) -> Result<(), NetError> {
    bytes.truncate(HEADER_OCTETS + question_octets);
    bytes[2] |= TC;
    bytes[6..HEADER_OCTETS].fill(0);
    if let Some(edns) = edns {
        bytes[11] = 1;
        let mut opt = Vec::with_capacity(16);
        edns.emit(&mut BinEncoder::new(&mut opt))?;
        bytes.extend_from_slice(&opt);
    }
    Ok(())
}

/// FORMERR for a message whose header alone could be read: the header comes back, nothing else.
pub(crate) fn format_error(message: &[u8]) -> Vec<u8> {
    let mut bytes = message.get(..HEADER_OCTETS).unwrap_or_default().to_vec();
    if let [_, _, flags, code, counts @ ..] = bytes.as_mut_slice() {
        // Opcode and RD come back; AA and TC do not.
        *flags = QR | (*flags & 0x79);
        *code = ResponseCode::FormErr.low();
        counts.fill(0);
    }
    bytes
}
