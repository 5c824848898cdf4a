//! One key: ECDSA on P-256 with SHA-256, algorithm 13 (RFC 6605), which every validator knows
//! (RFC 8624 §3.1) and whose signatures are short.

use std::{fmt, sync::Arc};

use hickory_proto::{
    dnssec::{
        Algorithm, DigestType, PublicKeyBuf,
        rdata::{CDNSKEY, CDS, DNSKEY, DS},
    },
    rr::Name,
};
use ring::{
    digest,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde::{Deserialize, Serialize};

/// Octets of a public key, "x | y" (RFC 6605 §4).
const PUBLIC: usize = 64;
/// Flags, protocol and algorithm before it (RFC 4034 §2.1).
const FIXED: usize = 4;

/// What a key signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The DNSKEY, CDS and CDNSKEY sets; the parent's DS points at it.
    Ksk,
    /// Everything else.
    Zsk,
}

impl Role {
    /// The flags of its DNSKEY: zone key, and secure entry point for a KSK (RFC 4034 §2.1.1).
    pub fn flags(self) -> u16 {
        match self {
            Self::Ksk => 257,
            Self::Zsk => 256,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ksk => "KSK",
            Self::Zsk => "ZSK",
        })
    }
}

/// A key could not be made, read or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFailure {
    /// No randomness, above all.
    #[error(
        "the system's random numbers can't be had, without which no key is made and nothing signed"
    )]
    Random,
    /// Not a key of ours.
    #[error("not an ECDSA P-256 key in PKCS#8 form")]
    NotAKey,
}

/// A key pair with its role. Clones share it.
#[derive(Clone)]
pub struct Key(Arc<Pair>);

struct Pair {
    role: Role,
    tag: u16,
    /// The RDATA of its DNSKEY.
    rdata: [u8; FIXED + PUBLIC],
    pkcs8: Vec<u8>,
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl fmt::Debug for Key {
    /// The secret stays inside.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0.role, self.0.tag)
    }
}

impl PartialEq for Key {
    /// The public part tells keys apart.
    fn eq(&self, other: &Self) -> bool {
        self.0.rdata == other.0.rdata
    }
}

impl Eq for Key {}

impl Key {
    /// Makes a new key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate(role: Role) -> Result<Self, KeyFailure> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|_| KeyFailure::Random)?;
        Self::from_pkcs8(role, pkcs8.as_ref())
    }

    /// Reads a key; that its two halves belong together is checked.
    ///
    /// # Errors
    /// It is none, or one of another kind.
    pub fn from_pkcs8(role: Role, pkcs8: &[u8]) -> Result<Self, KeyFailure> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|_| KeyFailure::NotAKey)?;
        // DNSSEC leaves out the 4 that says "uncompressed" (RFC 6605 §4).
        let public: &[u8; PUBLIC] = pair
            .public_key()
            .as_ref()
            .last_chunk()
            .ok_or(KeyFailure::NotAKey)?;
        let mut rdata = [0; FIXED + PUBLIC];
        let (fixed, rest) = rdata.split_at_mut(FIXED);
        let [high, low] = role.flags().to_be_bytes();
        fixed.copy_from_slice(&[high, low, 3, Algorithm::ECDSAP256SHA256.into()]);
        rest.copy_from_slice(public);
        Ok(Self(Arc::new(Pair {
            role,
            // RFC 4034 appendix B.
            tag: DNSKEY::calculate_key_tag_internal(&rdata),
            rdata,
            pkcs8: pkcs8.to_vec(),
            pair,
            random,
        })))
    }

    /// The secret, for the state file alone.
    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.0.pkcs8
    }

    /// What it signs.
    pub fn role(&self) -> Role {
        self.0.role
    }

    /// Its key tag (RFC 4034 appendix B).
    pub fn tag(&self) -> u16 {
        self.0.tag
    }

    /// Signs: "r | s", as an RRSIG holds it (RFC 6605 §4).
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], KeyFailure> {
        let signature = self
            .0
            .pair
            .sign(&self.0.random, message)
            .map_err(|_| KeyFailure::Random)?;
        signature
            .as_ref()
            .try_into()
            .map_err(|_| KeyFailure::NotAKey)
    }

    /// Its DNSKEY's data: what tells it from every other key, as tags don't.
    pub(super) fn octets(&self) -> &[u8] {
        &self.0.rdata
    }

    fn public(&self) -> Vec<u8> {
        self.0.rdata.iter().skip(FIXED).copied().collect()
    }

    /// Its DNSKEY record.
    pub fn dnskey(&self) -> DNSKEY {
        let public = PublicKeyBuf::new(self.public(), Algorithm::ECDSAP256SHA256);
        DNSKEY::with_flags(self.0.role.flags(), public)
    }

    /// SHA-256 of owner and DNSKEY (RFC 4509 §2.1).
    fn digest(&self, origin: &Name) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        // The owner in canonical form: lower case, uncompressed (RFC 4034 §6.2).
        for label in origin.iter() {
            context.update(&[u8::try_from(label.len()).unwrap_or(0)]);
            context.update(&label.to_ascii_lowercase());
        }
        context.update(&[0]);
        context.update(&self.0.rdata);
        context.finish().as_ref().to_vec()
    }

    /// The DS the parent holds for it, with the one digest all validators must know (RFC 8624 §3.3).
    pub fn ds(&self, origin: &Name) -> DS {
        DS::new(
            self.0.tag,
            Algorithm::ECDSAP256SHA256,
            DigestType::SHA256,
            self.digest(origin),
        )
    }

    /// The same as a wish to the parent (RFC 7344 §3.1).
    pub fn cds(&self, origin: &Name) -> CDS {
        CDS::new(
            self.0.tag,
            Some(Algorithm::ECDSAP256SHA256),
            DigestType::SHA256,
            self.digest(origin),
        )
    }

    /// The same for parents that compute digests themselves (RFC 7344 §3.2).
    pub fn cdnskey(&self) -> CDNSKEY {
        CDNSKEY::with_flags(
            self.0.role.flags(),
            Some(Algorithm::ECDSAP256SHA256),
            self.public(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::dnssec::{PublicKey, Verifier};

    #[test]
    fn what_it_says_of_itself_is_what_others_compute() {
        let origin = Name::from_ascii("W.Example.").unwrap();
        for role in [Role::Ksk, Role::Zsk] {
            let key = Key::generate(role).unwrap();
            let dnskey = key.dnskey();
            assert_eq!(dnskey.flags(), role.flags());
            assert_eq!(dnskey.calculate_key_tag().unwrap(), key.tag());
            assert!(key.ds(&origin).covers(&origin, &dnskey).unwrap());
            assert_eq!(key.cds(&origin).digest(), key.ds(&origin).digest());
            assert_eq!(
                key.cdnskey().public_key().as_ref(),
                Some(dnskey.public_key())
            );
            let signature = key.sign(b"message").unwrap();
            assert!(dnskey.verify(b"message", &signature).is_ok());
            assert!(dnskey.verify(b"massage", &signature).is_err());
            assert!(dnskey.public_key().verify(b"message", &signature).is_ok());
        }
    }

    #[test]
    fn a_key_is_read_back_and_its_secret_never_shown() {
        let key = Key::generate(Role::Ksk).unwrap();
        assert_eq!(Key::from_pkcs8(Role::Ksk, key.pkcs8()).unwrap(), key);
        assert_eq!(format!("{key:?}"), format!("KSK {}", key.tag()));
        let mut damaged = key.pkcs8().to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(
            Key::from_pkcs8(Role::Ksk, &damaged),
            Err(KeyFailure::NotAKey)
        );
        assert_eq!(Key::from_pkcs8(Role::Ksk, b""), Err(KeyFailure::NotAKey));
    }
}
