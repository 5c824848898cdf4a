//! One zone as it is served: its names, its serial, its signatures, and answers ready to be sent.

use std::sync::Arc;

use hickory_proto::rr::Record;

use crate::{
    answers::Answers,
    authority::Authority,
    signed::{Signature, Signed},
};

/// A zone, forward or reverse, in the form DNS answers from.
#[derive(Debug)]
pub struct Served {
    /// Its names; of a signed zone, the keys too.
    pub authority: Arc<Authority>,
    /// Its SOA serial.
    pub serial: u32,
    /// Its signatures, when it is signed.
    pub signed: Option<Signed>,
    /// The content alone, before keys were added to it: what the next compilation compares.
    pub content: Arc<Authority>,
    /// Answers ready to be sent.
    pub answers: Answers,
}

impl Served {
    /// An unsigned zone.
    pub fn new(authority: Arc<Authority>, serial: u32) -> Self {
        Self::complete(Arc::clone(&authority), authority, serial, None)
    }

    /// A signed zone: `authority` is `content` with its keys, `sign` signs the SOA record.
    pub fn signed(
        authority: Arc<Authority>,
        content: Arc<Authority>,
        serial: u32,
        mut signed: Signed,
        soa: Signature,
    ) -> Self {
        signed.soa = soa;
        Self::complete(authority, content, serial, Some(signed))
    }

    fn complete(
        authority: Arc<Authority>,
        content: Arc<Authority>,
        serial: u32,
        signed: Option<Signed>,
    ) -> Self {
        let mut served = Self {
            authority,
            serial,
            signed,
            content,
            answers: Answers::default(),
        };
        served.answers = Answers::prepare(&served);
        served
    }

    /// The SOA record as a positive answer.
    pub fn soa(&self) -> Record {
        self.authority.soa(self.serial, self.authority.ttl)
    }
}

/// Two are equal when they hold the same records; signatures differ each time they are made.
impl PartialEq for Served {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial && self.content == other.content
    }
}

impl Eq for Served {}
