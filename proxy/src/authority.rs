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
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use time::{Duration, OffsetDateTime};

/// Browsers refuse private roots that live for ever less than they annoy: ten years.
const ROOT_LIFE: Duration = Duration::days(3_650);
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
        let folder = state.join("keys");
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
            return Ok(Self { issuer, pem });
        }
        // A key without its certificate is left by a crash between the two: it serves as well.
        let pair = match std::fs::read_to_string(&key) {
            Ok(pem) => KeyPair::from_pem(&pem).map_err(|source| AuthorityError::Unusable {
                path: key.display().to_string(),
                source,
            })?,
            Err(_) => KeyPair::generate()?,
        };
        let params = root(OffsetDateTime::now_utc());
        let pem = params.self_signed(&pair)?.pem();
        std::fs::create_dir_all(&folder).map_err(file("write", &folder))?;
        // The key first: a certificate without its key could be trusted and never used.
        durable::replace(&key, pair.serialize_pem().as_bytes(), Access::Owner)
            .map_err(file("write", &key))?;
        durable::replace(&certificate, pem.as_bytes(), Access::Everybody)
            .map_err(file("write", &certificate))?;
        Ok(Self {
            issuer: Issuer::new(params, pair),
            pem,
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
        params.distinguished_name = DistinguishedName::new();
        params.not_before = now - BACKDATED;
        params.not_after = now + LEAF_LIFE;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let key = CertifiedKey::from_der(vec![certificate.der().clone()], key, &default_provider())
            .map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Ok(Leaf {
            key: key.into(),
            not_after: (now + LEAF_LIFE).into(),
            files: None,
        })
    }
}

fn root(now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "Nuage local certificate authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATED;
    params.not_after = now + ROOT_LIFE;
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
