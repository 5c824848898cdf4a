//! Reading a message where it stands, for what must see its octets: signatures, and the questions of
//! secondaries. Everything here is hostile; what can't be read is `None`.

/// Octets of a message's header.
pub(crate) const HEADER: usize = 12;
/// QR of the third octet.
pub(crate) const QR: u8 = 0x80;
/// A name never takes more (RFC 1035 §2.3.4).
const NAME_OCTETS: usize = 255;

pub(crate) const SOA: u16 = 6;
pub(crate) const OPT: u16 = 41;
pub(crate) const IXFR: u16 = 251;
pub(crate) const AXFR: u16 = 252;
pub(crate) const IN: u16 = 1;

/// A place in a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'m> {
    message: &'m [u8],
    pub(crate) at: usize,
}

impl<'m> Cursor<'m> {
    pub(crate) fn new(message: &'m [u8], at: usize) -> Self {
        Self { message, at }
    }

    pub(crate) fn take(&mut self, octets: usize) -> Option<&'m [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(octets)?)?;
        self.at += octets;
        Some(taken)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A number of 48 bits, as times of signatures are.
    pub(crate) fn u48(&mut self) -> Option<u64> {
        let high = u64::from(self.u16()?);
        Some((high << 32) | u64::from(self.u32()?))
    }

    pub(crate) fn skip_name(&mut self) -> Option<()> {
        loop {
            let [length] = *self.take(1)? else {
                return None;
            };
            match length {
                0 => return Some(()),
                1..=63 => drop(self.take(usize::from(length))?),
                // A pointer ends a name (RFC 1035 §4.1.4).
                0xc0.. => return self.take(1).map(drop),
                _ => return None,
            }
        }
    }

    /// A name without its pointers, in lower case: one form for each name.
    pub(crate) fn name(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut here = *self;
        self.skip_name()?;
        let mut earliest = here.at;
        loop {
            let [length] = *here.take(1)? else {
                return None;
            };
            match length {
                0 => {
                    name.push(0);
                    return Some(name);
                }
                1..=63 => {
                    let label = here.take(usize::from(length))?;
                    name.push(length);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    if name.len() >= NAME_OCTETS {
                        return None;
                    }
                }
                0xc0.. => {
                    let [low] = *here.take(1)? else {
                        return None;
                    };
                    let target = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    // Only backwards, so that it ends.
                    if target >= earliest {
                        return None;
                    }
                    earliest = target;
                    here.at = target;
                }
                _ => return None,
            }
        }
    }

    /// The fixed part of a record, from its owner to the length of its data.
    pub(crate) fn record(&mut self) -> Option<Record> {
        let start = self.at;
        self.skip_name()?;
        let (kind, class, ttl) = (self.u16()?, self.u16()?, self.u32()?);
        let length = self.u16()?;
        let data = self.at;
        self.take(usize::from(length))?;
        Some(Record {
            start,
            kind,
            class,
            ttl,
            data,
            end: self.at,
        })
    }
}

/// Where a record is, and what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) start: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    /// Where its data starts.
    pub(crate) data: usize,
    pub(crate) end: usize,
}

/// The counts of the four sections.
pub(crate) fn counts(message: &[u8]) -> Option<[u16; 4]> {
    let mut cursor = Cursor::new(message, 4);
    Some([cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?])
}

/// Visits the records after the question section, each with its section: 0 is the answer section, 2
/// the additional one. `None` when the message ends before them.
pub(crate) fn each_record(message: &[u8], mut visit: impl FnMut(usize, Record)) -> Option<()> {
    let [questions, sections @ ..] = counts(message)?;
    let mut cursor = Cursor::new(message, HEADER);
    for _ in 0..questions {
        cursor.skip_name()?;
        cursor.take(4)?;
    }
    for (section, count) in sections.into_iter().enumerate() {
        for _ in 0..count {
            visit(section, cursor.record()?);
        }
    }
    Some(())
}

/// The first record of a type in a section.
pub(crate) fn record_of(message: &[u8], section: usize, kind: u16) -> Option<Record> {
    let mut found = None;
    each_record(message, |at, record| {
        if at == section && record.kind == kind && found.is_none() {
            found = Some(record);
        }
    })?;
    found
}

/// Where what follows a name begins.
pub(crate) fn after_name(message: &[u8], at: usize) -> Option<usize> {
    let mut cursor = Cursor::new(message, at);
    cursor.skip_name()?;
    Some(cursor.at)
}

/// The type the first question asks for.
pub(crate) fn question_kind(message: &[u8]) -> Option<u16> {
    let mut cursor = Cursor::new(message, HEADER);
    cursor.skip_name()?;
    cursor.u16()
}

/// A message's one question.
#[derive(Debug)]
pub(crate) struct Question {
    /// The name in wire form and lower case.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// Where it ends.
    pub(crate) end: usize,
}

/// The question of a message that has exactly one.
pub(crate) fn question(message: &[u8]) -> Option<Question> {
    if counts(message)?[0] != 1 {
        return None;
    }
    let mut cursor = Cursor::new(message, HEADER);
    let (name, kind, class) = (cursor.name()?, cursor.u16()?, cursor.u16()?);
    Some(Question {
        name,
        kind,
        class,
        end: cursor.at,
    })
}

/// The message's OPT record.
pub(crate) fn opt(message: &[u8]) -> Option<Record> {
    if counts(message)?[3] == 0 {
        return None;
    }
    record_of(message, 2, OPT)
}

/// Header and question alone as an answer with this code: opcode and RD stay.
pub(crate) fn bare_answer(message: &[u8], code: u8) -> Vec<u8> {
    let end = question(message).map_or(HEADER, |question| question.end);
    let mut answer = message.get(..end).unwrap_or_default().to_vec();
    if let Some(header) = answer.get_mut(2..HEADER) {
        header[0] = QR | (header[0] & 0x79);
        header[1] = code;
        header[2..].fill(0);
        header[3] = u8::from(end > HEADER);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_read_through_pointers_that_lead_backwards() {
        let octets = b"\x03Www\x01a\x00\x02Xy\xc0\x04\xc0\x0d\xc0\x00";
        let name = |at| Cursor::new(octets, at).name();
        assert_eq!(name(0).unwrap(), b"\x03www\x01a\x00");
        assert_eq!(name(7).unwrap(), b"\x02xy\x01a\x00");
        assert!(name(12).is_none(), "at itself");
        assert_eq!(name(14).unwrap(), b"\x03www\x01a\x00");
        let mut cursor = Cursor::new(octets, 7);
        cursor.name().unwrap();
        assert_eq!(cursor.at, 12);
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_not(octets in prop::collection::vec(any::<u8>(), 0..80), at in 0_usize..80) {
            Cursor::new(&octets, at).name();
            each_record(&octets, |_, _| {});
            question_kind(&octets);
            question(&octets);
            opt(&octets);
            bare_answer(&octets, 5);
        }
    }
}
