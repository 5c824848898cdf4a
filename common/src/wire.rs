//! Records on the wire: a message writer whose compression never stops.
//!
//! hickory-proto's encoder looks for names in a list and gives up after 120 of them. PTR sets here
//! hold thousands and zone transfers millions, so suffixes are kept in a map. Everything but the names
//! that may be compressed (RFC 3597 §4) is encoded by hickory-proto.

use std::collections::HashMap;

use hickory_proto::{
    rr::{Name, RData, Record},
    serialize::binary::{BinEncodable, BinEncoder, NameEncoding},
};

/// Octets of a message header (RFC 1035 §4.1.1).
pub const HEADER_OCTETS: usize = 12;
/// A pointer reaches this far (RFC 1035 §4.1.4).
const POINTER_REACH: usize = 0x3fff;
const POINTER: u16 = 0xc000;

/// A message under construction.
#[derive(Debug)]
pub struct Writer {
    octets: Vec<u8>,
    most: usize,
    /// Lower-cased suffixes and where they were written.
    suffixes: HashMap<Box<[u8]>, u16>,
}

impl Writer {
    /// An empty message that may grow to `most` octets: an empty header, and room for the counts.
    pub fn new(most: usize) -> Self {
        Self {
            octets: vec![0; HEADER_OCTETS],
            most,
            suffixes: HashMap::new(),
        }
    }

    /// A message that goes on after a header, and a question if there is one.
    pub fn after(start: Vec<u8>, most: usize) -> Self {
        let mut writer = Self {
            octets: start,
            most,
            suffixes: HashMap::new(),
        };
        writer.learn_question();
        writer
    }

    /// Lets names point into the question.
    fn learn_question(&mut self) {
        let mut at = HEADER_OCTETS;
        while let Some(length) = self
            .octets
            .get(at)
            .filter(|length| (1..64).contains(*length))
        {
            let next = at + 1 + usize::from(*length);
            let rest = &self.octets[at..];
            let Some(end) = name_end(rest) else { return };
            if let Ok(place) = u16::try_from(at) {
                self.suffixes
                    .insert(rest[..end].to_ascii_lowercase().into(), place);
            }
            at = next;
        }
    }

    /// Changes how long the message may get.
    pub fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// What has been written.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// The finished message.
    pub fn into_octets(self) -> Vec<u8> {
        self.octets
    }

    /// Writes a question of class IN.
    pub fn question(&mut self, name: &Name, kind: u16) {
        self.name(name);
        self.octets.extend_from_slice(&kind.to_be_bytes());
        self.octets.extend_from_slice(&1_u16.to_be_bytes());
    }

    /// Writes a record; `false`, and nothing written, when it does not fit.
    pub fn record(&mut self, record: &Record) -> bool {
        let start = self.octets.len();
        self.name(&record.name);
        let kind = u16::from(record.record_type());
        let class = u16::from(record.dns_class);
        self.octets.extend_from_slice(&kind.to_be_bytes());
        self.octets.extend_from_slice(&class.to_be_bytes());
        self.octets.extend_from_slice(&record.ttl.to_be_bytes());
        let length_at = self.octets.len();
        self.octets.extend_from_slice(&[0, 0]);
        let written = self.data(&record.data);
        let length = u16::try_from(self.octets.len() - length_at - 2);
        match length {
            Ok(length) if written && self.octets.len() <= self.most => {
                self.octets[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
                true
            }
            _ => {
                self.octets.truncate(start);
                self.suffixes.retain(|_, at| usize::from(*at) < start);
                false
            }
        }
    }

    fn data(&mut self, data: &RData) -> bool {
        match data {
            RData::NS(name) => self.name(&name.0),
            RData::CNAME(name) => self.name(&name.0),
            RData::PTR(name) => self.name(&name.0),
            RData::MX(mx) => {
                self.octets.extend_from_slice(&mx.preference.to_be_bytes());
                self.name(&mx.exchange);
            }
            RData::SOA(soa) => {
                self.name(&soa.mname);
                self.name(&soa.rname);
                self.octets.extend_from_slice(&soa.serial.to_be_bytes());
                for timer in [soa.refresh, soa.retry, soa.expire] {
                    self.octets.extend_from_slice(&timer.to_be_bytes());
                }
                self.octets.extend_from_slice(&soa.minimum.to_be_bytes());
            }
            other => match plain(other) {
                Some(octets) => self.octets.extend_from_slice(&octets),
                None => return false,
            },
        }
        true
    }

    fn name(&mut self, name: &Name) {
        let whole = wire(name);
        let mut rest = &whole[..];
        while let [length, after @ ..] = rest
            && *length > 0
        {
            // The root label ends what is remembered, as it ends the name.
            let lower = rest.to_ascii_lowercase();
            if let Some(at) = self.suffixes.get(&*lower) {
                self.octets.extend_from_slice(&(POINTER | at).to_be_bytes());
                return;
            }
            let at = self.octets.len();
            if at <= POINTER_REACH
                && let Ok(at) = u16::try_from(at)
            {
                self.suffixes.insert(lower.into(), at);
            }
            let label = usize::from(*length).min(after.len());
            self.octets.extend_from_slice(&rest[..=label]);
            rest = &after[label..];
        }
        self.octets.push(0);
    }
}

/// How long an uncompressed name is, its root label included.
fn name_end(octets: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *octets.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
}

/// A name as labels with their lengths, in the case it has (RFC 1035 §3.1).
pub fn wire(name: &Name) -> Vec<u8> {
    let mut octets = Vec::with_capacity(name.len() + 2);
    for label in name.iter() {
        octets.push(u8::try_from(label.len()).unwrap_or(0));
        octets.extend_from_slice(label);
    }
    octets.push(0);
    octets
}

/// Record data without compression.
fn plain(data: &RData) -> Option<Vec<u8>> {
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    data.emit(&mut encoder).ok()?;
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::{op::Message, rr::rdata::PTR};

    #[test]
    fn thousands_of_names_fit_one_message_and_are_read_back() {
        let owner = Name::from_ascii("10.2.0.192.in-addr.arpa.").unwrap();
        let mut writer = Writer::new(65_535);
        writer.question(&owner, 12);
        let mut written = 0_u16;
        for number in 0..10_000 {
            let name = Name::from_ascii(format!("site-{number:08}.w.example.")).unwrap();
            let record = Record::from_rdata(owner.clone(), 300, RData::PTR(PTR(name)));
            if !writer.record(&record) {
                break;
            }
            written += 1;
        }
        // Owner pointer, ten octets, a label of thirteen with its length, a pointer to the rest.
        assert_eq!(written, 2_338);
        let mut octets = writer.into_octets();
        octets[2] = 0x80;
        octets[5] = 1;
        octets[6..8].copy_from_slice(&written.to_be_bytes());
        let message = Message::from_vec(&octets).unwrap();
        assert_eq!(message.answers.len(), 2_338);
        let last = &message.answers[2_337];
        assert_eq!(last.name, owner);
        assert_eq!(last.data.to_string(), "site-00002337.w.example.");
    }
}
