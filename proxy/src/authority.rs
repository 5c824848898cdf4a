//! The local certificate authority: made on first start, kept in the state folder, trusted by those
//! who import it (`nuage ca` prints it).

use std::{io, path::Path, time::SystemTime};

use common::{
    durable::{self, Access},
    zone::CertificateFiles,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use time::{Duration, OffsetDateTime};

/// Browsers refuse private roots that live for ever less than they annoy: ten years.
const ROOT_LIFE: Duration = Duration::days(3_650);
/// The edge's own authority; control makes another long before its end.
const EDGE_LIFE: Duration = Duration::days(365);
/// A leaf lives this long...
const LEAF_LIFE: Duration = Duration::days(90);
/// ...and is replaced when this much is left.
pub(crate) const RENEW_BEFORE: std::time::Duration =
    std::time::Duration::from_secs(30 * 24 * 3_600);
/// Clocks of visitors may lag behind ours.
const BACKDATED: Duration = Duration::hours(24);

/// The authority with its key.
#[derive(Debug)]
pub struct LocalAuthority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// Sent with every certificate it makes, when visitors trust another authority above it.
    intermediate: Option<CertificateDer<'static>>,
}

/// A certificate with its key, ready for TLS.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) key: std::sync::Arc<CertifiedKey>,
    pub(crate) not_after: SystemTime,
    /// The files it comes from; none when it is the local authority's.
    pub(crate) files: Option<CertificateFiles>,
}

/// What can go wrong with the authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of the authority.
    #[error("can't {action} {path}, the local certificate authority's file")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The files do not hold an authority.
    #[error(
        "{path} holds no usable certificate authority: restore it from a backup, or remove ca.pem and ca.key to make a new one"
    )]
    Unusable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The edge has none yet.
    #[error(
        "there is no {path}: start `nuage serve --role control` first, which makes the edge's certificate authority"
    )]
    NoDelegate {
        /// The file.
        path: String,
    },
    /// A certificate could not be made.
    #[error("can't make a certificate")]
    Make(#[from] rcgen::Error),
}

impl LocalAuthority {
    /// Reads the authority of a state folder, or makes it.
    ///
    /// # Errors
    /// Files that can't be read or written, or do not hold an authority.
    pub fn open(state: &Path) -> Result<Self, AuthorityError> {
        Self::open_in(&state.join("keys"), None)
    }

    /// Reads the authority the edge was given.
    ///
    /// # Errors
    /// There is none yet: control makes it.
    pub fn open_for_edge(edge: &Path) -> Result<Self, AuthorityError> {
        let path = edge.join("ca.pem");
        if !path.exists() {
            return Err(AuthorityError::NoDelegate {
                path: path.display().to_string(),
            });
        }
        let authority = Self::open_in(edge, None)?;
        let der = CertificateDer::from_pem_slice(authority.pem.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self {
            intermediate: Some(der),
            ..authority
        })
    }

    /// Makes sure the edge has an authority of its own below this one, good for a while: the root's key
    /// stays where the internet never reaches.
    ///
    /// # Errors
    /// Its files can't be read or written.
    pub fn delegate(&self, edge: &Path) -> Result<(), AuthorityError> {
        let now = OffsetDateTime::now_utc();
        if let Ok(text) = std::fs::read(edge.join("ca.pem"))
            && let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&text)
            && let Ok(certificate) = pem.parse_x509()
            && certificate.validity().not_after.timestamp()
                > (now + LEAF_LIFE + Duration::days(30)).unix_timestamp()
        {
            return Ok(());
        }
        for name in ["ca.pem", "ca.key"] {
            // Gone already is as good.
            std::fs::remove_file(edge.join(name)).unwrap_or_default();
        }
        Self::open_in(edge, Some(self)).map(drop)
    }

    fn open_in(folder: &Path, above: Option<&Self>) -> Result<Self, AuthorityError> {
        let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
        let file = |action, path: &Path| {
            let path = path.display().to_string();
            move |source| AuthorityError::File {
                action,
                path,
                source,
            }
        };
        if certificate.exists() {
            let pem = std::fs::read_to_string(&certificate).map_err(file("read", &certificate))?;
            let key_pem = std::fs::read_to_string(&key).map_err(file("read", &key))?;
            let unusable = |path: &Path| {
                let path = path.display().to_string();
                move |source| AuthorityError::Unusable { path, source }
            };
            let pair = KeyPair::from_pem(&key_pem).map_err(unusable(&key))?;
            let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(unusable(&certificate))?;
            return Ok(Self {
                issuer,
                pem,
                intermediate: None,
            });
        }
        // A key without its certificate is left by a crash between the two: it serves as well.
        let pair = match std::fs::read_to_string(&key) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| AuthorityError::Unusable {
                path: key.display().to_string(),
                source,
            })?,
            Err(_) => KeyPair::generate()?,
        };
        let now = OffsetDateTime::now_utc();
        let (params, pem) = match above {
            None => {
                let params = authority("Nuage local certificate authority", 1, now, ROOT_LIFE);
                let pem = params.self_signed(&pair)?.pem();
                (params, pem)
            }
            Some(above) => {
                let params = authority("Nuage edge", 0, now, EDGE_LIFE);
                let pem = params.signed_by(&pair, &above.issuer)?.pem();
                (params, pem)
            }
        };
        std::fs::create_dir_all(folder).map_err(file("write", folder))?;
        // The key first: a certificate without its key could be trusted and never used.
        durable::replace(&key, pair.serialize_pem().as_bytes(), Access::Owner)
            .map_err(file("write", &key))?;
        durable::replace(&certificate, pem.as_bytes(), Access::Everybody)
            .map_err(file("write", &certificate))?;
        Ok(Self {
            issuer: Issuer::new(params, pair),
            pem,
            intermediate: None,
        })
    }

    /// The authority's certificate in PEM, for browsers and systems to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names.
    pub(crate) fn issue(
        &self,
        names: Vec<String>,
        now: OffsetDateTime,
    ) -> Result<Leaf, AuthorityError> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        // An empty subject is allowed (RFC 5280 §4.2.1.6), but kdig ends a handshake over it.
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Nuage");
        params.not_before = now - BACKDATED;
        params.not_after = now + LEAF_LIFE;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let chain = std::iter::once(certificate.der().clone())
            .chain(self.intermediate.clone())
            .collect();
        let key = CertifiedKey::from_der(chain, key, &default_provider())
            .map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Ok(Leaf {
            key: key.into(),
            not_after: (now + LEAF_LIFE).into(),
            files: None,
        })
    }
}

/// An authority with at most `below` others between it and a certificate.
fn authority(name: &str, below: u8, now: OffsetDateTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = below == 0;
    params.not_before = now - BACKDATED;
    params.not_after = now + life;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_authority_survives_a_restart_and_keeps_its_key_to_itself() {
        let state = tempfile::tempdir().unwrap();
        let first = LocalAuthority::open(state.path()).unwrap();
        let again = LocalAuthority::open(state.path()).unwrap();
        assert_eq!(first.pem(), again.pem());
        let mode = std::fs::metadata(state.path().join("keys/ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        let leaf = again
            .issue(vec!["*.w.example".into()], OffsetDateTime::now_utc())
            .unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&leaf.key.cert[0]).unwrap();
        let (_, ca) = x509_parser::pem::parse_x509_pem(first.pem().as_bytes()).unwrap();
        assert_eq!(certificate.issuer(), ca.parse_x509().unwrap().subject());
    }

    #[test]
    fn the_edge_signs_without_the_roots_key() {
        let state = tempfile::tempdir().unwrap();
        let edge = state.path().join("edge");
        assert!(LocalAuthority::open_for_edge(&edge).is_err());
        let root = LocalAuthority::open(state.path()).unwrap();
        root.delegate(&edge).unwrap();
        let given = std::fs::read(edge.join("ca.pem")).unwrap();
        root.delegate(&edge).unwrap();
        assert_eq!(
            std::fs::read(edge.join("ca.pem")).unwrap(),
            given,
            "still good"
        );
        let leaf = LocalAuthority::open_for_edge(&edge)
            .unwrap()
            .issue(vec!["*.w.example".into()], OffsetDateTime::now_utc())
            .unwrap();
        assert_eq!(leaf.key.cert.len(), 2);
        let (_, between) = x509_parser::parse_x509_certificate(&leaf.key.cert[1]).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(root.pem().as_bytes()).unwrap();
        assert_eq!(between.issuer(), pem.parse_x509().unwrap().subject());
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_mended() {
        let state = tempfile::tempdir().unwrap();
        LocalAuthority::open(state.path()).unwrap();
        let key = std::fs::read(state.path().join("keys/ca.key")).unwrap();
        std::fs::remove_file(state.path().join("keys/ca.pem")).unwrap();
        LocalAuthority::open(state.path()).unwrap();
        assert_eq!(
            std::fs::read(state.path().join("keys/ca.key")).unwrap(),
            key
        );
        LocalAuthority::open(state.path()).unwrap();
    }

    #[test]
    fn a_broken_authority_is_told_not_replaced() {
        let state = tempfile::tempdir().unwrap();
        LocalAuthority::open(state.path()).unwrap();
        let path = state.path().join("keys/ca.pem");
        durable::replace(&path, b"nonsense", Access::Everybody).unwrap();
        let error = LocalAuthority::open(state.path()).unwrap_err();
        assert!(
            error.to_string().contains("restore it from a backup"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
    }
}
