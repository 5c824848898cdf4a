//! Signatures over a restart: a file beside a zone's keys. It is written whole when all of the zone was
//! signed, and what each edit signs is added at its end.
//!
//! What is signed is told by a digest, so that the file need not match the zone: a signature is taken for
//! any set that is still the same, and the others are made. Each addition names the form it was made from:
//! past one that is missing, cut or changed nothing is read, and what is lost costs the time of signing it
//! anew and a new serial, nothing else.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use ring::digest::{SHA256, digest};

use crate::{
    durable::{self, Access},
    signed::{SIGNATURE_OCTETS, Signature},
};

const MAGIC: &[u8; 8] = b"nuagesg2";
/// Of a SHA-256 this much tells sets apart.
pub(super) const DIGEST_OCTETS: usize = 16;
const ENTRY_OCTETS: usize = DIGEST_OCTETS + 2 + 4 + 4 + SIGNATURE_OCTETS;
/// What ends a portion: a version and a checksum.
const END_OCTETS: usize = 8 + SUM_OCTETS;
const SUM_OCTETS: usize = 32;
/// A million names with four signatures each, twice.
const FILE_BYTES: u64 = 800 << 20;
/// A file is written anew when it takes more than twice what its zone needs and this.
const SPARE_BYTES: u64 = 1 << 20;

/// What tells a set of records from all others.
pub(super) type SetDigest = [u8; DIGEST_OCTETS];

/// Signatures by what they sign and the key that made them.
#[derive(Debug, Default)]
pub struct Kept {
    /// [`crate::signed::Signed::version`] of the form they were part of.
    pub(super) version: u64,
    /// Whether the file goes on after what could be read.
    pub(super) torn: bool,
    signatures: HashMap<(SetDigest, u16), Signature>,
}

impl Kept {
    /// The signature of a set by a key.
    pub(super) fn find(&self, set: &SetDigest, tag: u16) -> Option<&Signature> {
        self.signatures.get(&(*set, tag))
    }

    /// Reads a file; `None` when there is none that begins well.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let size = fs::metadata(path).ok()?.len();
        let octets = (size <= FILE_BYTES)
            .then(|| fs::read(path).ok())
            .flatten()?;
        let mut rest = octets.strip_prefix(MAGIC)?;
        let mut kept = Self::default();
        while let Some((portion, after)) = Portion::first(rest)
            && portion.from == kept.version
        {
            kept.take(&portion)?;
            rest = after;
        }
        if kept.version == 0 {
            tracing::warn!(file = %path.display(), "signatures kept from before are damaged: the zone is signed anew");
            return None;
        }
        kept.torn = !rest.is_empty();
        Some(kept)
    }

    /// Takes up signatures; of two of one set the later one was served.
    fn take(&mut self, portion: &Portion<'_>) -> Option<()> {
        let (entries, _) = portion.entries.as_chunks::<ENTRY_OCTETS>();
        self.signatures.reserve(entries.len());
        for entry in entries {
            let (set, rest) = entry.split_first_chunk()?;
            let (tag, rest) = rest.split_first_chunk()?;
            let (inception, rest) = rest.split_first_chunk()?;
            let (expiration, rest) = rest.split_first_chunk()?;
            let tag = u16::from_be_bytes(*tag);
            let signature = Signature {
                inception: u32::from_be_bytes(*inception),
                expiration: u32::from_be_bytes(*expiration),
                tag,
                octets: rest.try_into().ok()?,
            };
            self.signatures.insert((*set, tag), signature);
        }
        self.version = portion.to;
        Some(())
    }

    /// Writes signatures as the file of a zone; only the owner may read it, as with the keys beside it.
    ///
    /// # Errors
    /// The file can't be written; the one before is still there.
    pub(crate) fn write(
        path: &Path,
        version: u64,
        signatures: &[(SetDigest, Signature)],
    ) -> io::Result<()> {
        let mut octets = MAGIC.to_vec();
        octets.extend(portion(0, version, signatures));
        durable::replace(path, &octets, Access::Owner)
    }

    /// Whether what is signed from now on may be added: the file ends with this version of the zone, and
    /// is not much longer than its signatures need.
    pub(crate) fn takes(path: &Path, version: u64, signatures: usize) -> bool {
        let end = || -> io::Result<(u64, [u8; 8])> {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            let mut last = [0; 8];
            file.read_exact_at(&mut last, length.saturating_sub(END_OCTETS as u64))?;
            Ok((length, last))
        };
        let most = SPARE_BYTES + 2 * (signatures * ENTRY_OCTETS) as u64;
        end().is_ok_and(|(length, last)| length < most && last == version.to_be_bytes())
    }

    /// Adds the signatures by which one version of a zone became the next.
    ///
    /// # Errors
    /// They can't be added; what was there before is still good.
    pub(crate) fn append(
        path: &Path,
        from: u64,
        to: u64,
        signatures: &[(SetDigest, Signature)],
    ) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(path)?;
        let length = file.metadata()?.len();
        let written = file
            .write_all(&portion(from, to, signatures))
            .and_then(|()| file.sync_data());
        if written.is_err() {
            // What is left of it is passed over when it can't be cut off.
            file.set_len(length).unwrap_or_default();
        }
        written
    }
}

/// Signatures written at once.
struct Portion<'o> {
    /// The version of the zone before; 0 where all of it follows.
    from: u64,
    to: u64,
    entries: &'o [u8],
}

impl<'o> Portion<'o> {
    /// The first one, if it is whole, and what follows it.
    fn first(octets: &'o [u8]) -> Option<(Self, &'o [u8])> {
        let (from, rest) = octets.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
        let (entries, rest) = rest.split_at_checked(count.checked_mul(ENTRY_OCTETS)?)?;
        let (to, rest) = rest.split_first_chunk()?;
        let (sum, after) = rest.split_at_checked(SUM_OCTETS)?;
        let content = octets.get(..octets.len() - rest.len())?;
        (digest(&SHA256, content).as_ref() == sum).then_some((
            Self {
                from: u64::from_be_bytes(*from),
                to: u64::from_be_bytes(*to),
                entries,
            },
            after,
        ))
    }
}

fn portion(from: u64, to: u64, signatures: &[(SetDigest, Signature)]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(12 + END_OCTETS + signatures.len() * ENTRY_OCTETS);
    octets.extend_from_slice(&from.to_be_bytes());
    let count = u32::try_from(signatures.len()).unwrap_or(u32::MAX);
    octets.extend_from_slice(&count.to_be_bytes());
    for (set, signature) in signatures {
        octets.extend_from_slice(set);
        octets.extend_from_slice(&signature.tag.to_be_bytes());
        octets.extend_from_slice(&signature.inception.to_be_bytes());
        octets.extend_from_slice(&signature.expiration.to_be_bytes());
        octets.extend_from_slice(&signature.octets);
    }
    octets.extend_from_slice(&to.to_be_bytes());
    let sum = digest(&SHA256, &octets);
    octets.extend_from_slice(sum.as_ref());
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(set: u8, octet: u8) -> (SetDigest, Signature) {
        let signature = Signature {
            inception: 1,
            expiration: 2,
            tag: 3,
            octets: [octet; SIGNATURE_OCTETS],
        };
        ([set; DIGEST_OCTETS], signature)
    }

    /// What is kept of a set.
    fn octet(kept: &Kept, set: u8) -> Option<u8> {
        let signature = kept.find(&[set; DIGEST_OCTETS], 3);
        signature.map(|signature| signature.octets[0])
    }

    #[test]
    fn what_was_written_is_read_back_and_a_damaged_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.example.signatures");
        assert!(Kept::read(&path).is_none());
        Kept::write(&path, 7, &[signed(9, 4)]).unwrap();
        let kept = Kept::read(&path).unwrap();
        assert_eq!(
            (kept.version, octet(&kept, 9), kept.torn),
            (7, Some(4), false)
        );
        assert!(kept.find(&[9; DIGEST_OCTETS], 4).is_none());
        let mut octets = fs::read(&path).unwrap();
        octets[30] ^= 1;
        durable::replace(&path, &octets, Access::Owner).unwrap();
        assert!(Kept::read(&path).is_none());
        durable::replace(&path, &octets[..20], Access::Owner).unwrap();
        assert!(Kept::read(&path).is_none());
    }

    #[test]
    fn what_was_added_is_read_as_far_as_it_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.example.signatures");
        assert!(!Kept::takes(&path, 7, 2), "there is none");
        Kept::write(&path, 7, &[signed(1, 10), signed(2, 20)]).unwrap();
        assert!(Kept::takes(&path, 7, 2) && !Kept::takes(&path, 6, 2));
        let first = fs::read(&path).unwrap().len();
        Kept::append(&path, 7, 8, &[signed(3, 30)]).unwrap();
        Kept::append(&path, 8, 9, &[signed(1, 11)]).unwrap();
        let kept = Kept::read(&path).unwrap();
        let of = |kept: &Kept| [1, 2, 3].map(|set| octet(kept, set));
        assert_eq!((kept.version, kept.torn), (9, false));
        assert_eq!(of(&kept), [Some(11), Some(20), Some(30)]);
        assert!(Kept::takes(&path, 9, 2));

        // One in between could not be added.
        Kept::append(&path, 10, 11, &[signed(2, 21)]).unwrap();
        let kept = Kept::read(&path).unwrap();
        assert_eq!(
            (kept.version, kept.torn, octet(&kept, 2)),
            (9, true, Some(20))
        );

        // Cut anywhere, as by a full disk.
        let whole = fs::read(&path).unwrap();
        for length in first..whole.len() {
            File::create(&path)
                .unwrap()
                .write_all(&whole[..length])
                .unwrap();
            let kept = Kept::read(&path).unwrap();
            let known = [(7, 10, None), (8, 10, Some(30)), (9, 11, Some(30))];
            let found = (kept.version, octet(&kept, 1).unwrap(), octet(&kept, 3));
            assert!(known.contains(&found), "{length}: {found:?}");
            assert!(kept.torn || Kept::takes(&path, kept.version, 2));
        }

        let many = vec![signed(4, 40); 12_000];
        Kept::append(&path, 11, 12, &many).unwrap();
        assert!(!Kept::takes(&path, 12, 2), "far more than it needs");
        assert!(Kept::takes(&path, 12, 12_000));
    }
}
