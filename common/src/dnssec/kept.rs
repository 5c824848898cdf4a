//! Signatures over a restart: a file beside a zone's keys, written when all of the zone was signed.
//!
//! What is signed is told by a digest, so that the file need not match the zone: a signature is taken for
//! any set that is still the same, and the others are made. A file that is missing, cut or changed costs
//! the time of signing anew, nothing else.

use std::{collections::HashMap, io, path::Path};

use ring::digest::{SHA256, digest};

use crate::{
    durable::{self, Access},
    signed::{SIGNATURE_OCTETS, Signature},
};

const MAGIC: &[u8; 8] = b"nuagesg1";
/// Of a SHA-256 this much tells sets apart.
pub(super) const DIGEST_OCTETS: usize = 16;
const ENTRY_OCTETS: usize = DIGEST_OCTETS + 2 + 4 + 4 + SIGNATURE_OCTETS;
/// A million names with four signatures each.
const FILE_BYTES: u64 = 400 << 20;

/// What tells a set of records from all others.
pub(super) type SetDigest = [u8; DIGEST_OCTETS];

/// Signatures by what they sign and the key that made them.
#[derive(Debug, Default)]
pub struct Kept {
    /// [`crate::signed::Signed::version`] of the form they were part of.
    pub(super) version: u64,
    signatures: HashMap<(SetDigest, u16), Signature>,
}

impl Kept {
    /// The signature of a set by a key.
    pub(super) fn find(&self, set: &SetDigest, tag: u16) -> Option<&Signature> {
        self.signatures.get(&(*set, tag))
    }

    /// Reads a file; `None` when there is none that is whole.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let size = std::fs::metadata(path).ok()?.len();
        let octets = (size <= FILE_BYTES)
            .then(|| std::fs::read(path).ok())
            .flatten()?;
        let (content, sum) = octets.split_at_checked(octets.len().checked_sub(32)?)?;
        if digest(&SHA256, content).as_ref() != sum {
            tracing::warn!(file = %path.display(), "signatures kept from before are damaged: the zone is signed anew");
            return None;
        }
        let content = content.strip_prefix(MAGIC)?;
        let (version, entries) = content.split_first_chunk()?;
        let mut kept = Self {
            version: u64::from_be_bytes(*version),
            signatures: HashMap::with_capacity(entries.len() / ENTRY_OCTETS),
        };
        for entry in entries.chunks_exact(ENTRY_OCTETS) {
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
            kept.signatures.insert((*set, tag), signature);
        }
        Some(kept)
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
        let mut octets = Vec::with_capacity(48 + signatures.len() * ENTRY_OCTETS);
        octets.extend_from_slice(MAGIC);
        octets.extend_from_slice(&version.to_be_bytes());
        for (set, signature) in signatures {
            octets.extend_from_slice(set);
            octets.extend_from_slice(&signature.tag.to_be_bytes());
            octets.extend_from_slice(&signature.inception.to_be_bytes());
            octets.extend_from_slice(&signature.expiration.to_be_bytes());
            octets.extend_from_slice(&signature.octets);
        }
        let sum = digest(&SHA256, &octets);
        octets.extend_from_slice(sum.as_ref());
        durable::replace(path, &octets, Access::Owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_and_a_damaged_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.example.signatures");
        assert!(Kept::read(&path).is_none());
        let signature = Signature {
            inception: 1,
            expiration: 2,
            tag: 3,
            octets: [4; SIGNATURE_OCTETS],
        };
        Kept::write(&path, 7, &[([9; DIGEST_OCTETS], signature.clone())]).unwrap();
        let kept = Kept::read(&path).unwrap();
        assert_eq!(
            (kept.version, kept.find(&[9; DIGEST_OCTETS], 3)),
            (7, Some(&signature))
        );
        assert!(kept.find(&[9; DIGEST_OCTETS], 4).is_none());
        let mut octets = std::fs::read(&path).unwrap();
        octets[30] ^= 1;
        durable::replace(&path, &octets, Access::Owner).unwrap();
        assert!(Kept::read(&path).is_none());
        durable::replace(&path, &octets[..20], Access::Owner).unwrap();
        assert!(Kept::read(&path).is_none());
    }
}
