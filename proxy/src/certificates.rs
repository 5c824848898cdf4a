//! Which certificate a TLS client gets, by the name it asks for.
//!
//! A zone has one wildcard certificate; a foreign domain one of its own. Names that belong to no
//! zone of ours get none: the handshake is refused. Certificates of the local authority live in
//! memory alone and are made when first needed, which takes a fraction of a millisecond.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use common::{
    HostName, Published, Registry,
    metrics::{Computed, Family},
    zone::CertificateFiles,
};
use pingora::{
    listeners::{
        TlsAccept,
        tls::{Acceptor, TlsSettings},
    },
    protocols::{ALPN, tls::TlsRef},
};
use rustls::{
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert, ServerConfig},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;

use crate::authority::{Leaf, LocalAuthority, RENEW_BEFORE};

const NOT_AFTER: Family = Family {
    name: "nuage_tls_cert_not_after_timestamp_seconds",
    help: "When the certificate of a zone ends, in seconds since 1970.",
    labels: &["zone"],
    counter: false,
};

/// What one certificate speaks for: a zone by its origin, or a foreign domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity(HostName);

/// The server name a connection was opened for.
#[derive(Clone, Debug)]
pub(crate) struct ServerName(pub(crate) String);

/// All certificates in use.
pub struct Certificates {
    authority: LocalAuthority,
    published: Arc<Published>,
    leaves: RwLock<HashMap<Identity, Arc<Leaf>>>,
}

impl Certificates {
    /// Certificates for the zones of the registry in force.
    pub fn new(authority: LocalAuthority, published: Arc<Published>) -> Arc<Self> {
        let certificates = Arc::new(Self {
            authority,
            published,
            leaves: RwLock::default(),
        });
        certificates.renew();
        certificates
    }

    /// The certificate that speaks for a host, as seen by the registry of now.
    pub(crate) fn identity(registry: &Registry, host: &str) -> Option<Identity> {
        let zone = registry.zone(host).or_else(|| {
            let (_, origin) = host.split_once('.')?;
            registry.zone(origin)
        });
        if let Some(zone) = zone {
            return Some(Identity(zone.origin.clone()));
        }
        let route = registry.route(host).filter(|route| route.foreign)?;
        route
            .site
            .domains
            .iter()
            .find(|domain| domain.as_str() == host)
            .cloned()
            .map(Identity)
    }

    /// TLS for listeners, with HTTP/2 by ALPN (RFC 7301).
    pub(crate) fn acceptor(self: &Arc<Self>) -> Result<Acceptor, String> {
        let mut settings = TlsSettings::with_callbacks(Box::new(RememberServerName))
            .map_err(|error| error.to_string())?;
        settings.set_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        settings.set_alpn(ALPN::H2H1);
        Ok(settings.build())
    }

    /// TLS for DNS (RFC 7858 §3, RFC 9103 §7.1).
    pub fn for_dns(self: &Arc<Self>) -> Arc<ServerConfig> {
        let resolver = Arc::new(ForDns(Arc::clone(self)));
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"dot".to_vec()];
        config.into()
    }

    /// Makes what is missing for the zones, replaces what ends soon, reads files again, and forgets
    /// what has no site any more. Cheap enough to call at each change and every hour.
    pub(crate) fn renew(&self) {
        let registry = self.published.load();
        let wanted = |identity: &Identity| {
            Self::identity(&registry, identity.0.as_str()).as_ref() == Some(identity)
        };
        self.leaves
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|identity, _| wanted(identity));
        for zone in registry.zones.iter() {
            let identity = Identity(zone.origin.clone());
            let read = zone
                .certificate
                .as_ref()
                .is_some_and(|files| self.read(&identity, files).is_some());
            if !read {
                drop(self.leaf(&registry, &identity));
            }
        }
    }

    /// Reads a zone's own certificate, which whoever renews it may have replaced.
    fn read(&self, identity: &Identity, files: &CertificateFiles) -> Option<Arc<Leaf>> {
        match from_files(files) {
            Ok(leaf) => Some(self.keep(identity.clone(), leaf)),
            Err(error) => {
                tracing::error!(zone = %identity.0, %error, "the zone's own certificate can't be used; the last good one or the local authority's serves");
                None
            }
        }
    }

    fn keep(&self, identity: Identity, leaf: Leaf) -> Arc<Leaf> {
        let leaf = Arc::new(leaf);
        self.leaves
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(identity, Arc::clone(&leaf));
        leaf
    }

    fn leaf(&self, registry: &Registry, identity: &Identity) -> Option<Arc<Leaf>> {
        let files = registry
            .zone(identity.0.as_str())
            .and_then(|zone| zone.certificate.as_ref());
        let known = self
            .leaves
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(identity)
            .cloned();
        let lasting = |leaf: &Leaf| leaf.not_after > SystemTime::now() + RENEW_BEFORE;
        match (known, files) {
            // Files are renewed by whoever brought them.
            (Some(leaf), Some(files)) if leaf.files.as_ref() == Some(files) => return Some(leaf),
            (Some(leaf), None) if leaf.files.is_none() && lasting(&leaf) => return Some(leaf),
            // A zone that has just got files of its own; when they are no good, `renew` has told.
            (None, Some(files)) => {
                if let Ok(leaf) = from_files(files) {
                    return Some(self.keep(identity.clone(), leaf));
                }
            }
            (Some(leaf), Some(_)) if lasting(&leaf) => return Some(leaf),
            _ => {}
        }
        let names = match registry.zone(identity.0.as_str()) {
            Some(zone) => vec![zone.origin.to_string(), format!("*.{}", zone.origin)],
            None => vec![identity.0.to_string()],
        };
        match self.authority.issue(names, OffsetDateTime::now_utc()) {
            Ok(leaf) => Some(self.keep(identity.clone(), leaf)),
            Err(error) => {
                tracing::error!(%error, name = %identity.0, "no certificate");
                None
            }
        }
    }

    pub(crate) fn register(
        self: &Arc<Self>,
        registry: &prometheus::Registry,
    ) -> prometheus::Result<()> {
        let certificates = Arc::clone(self);
        let compute = move || {
            let leaves = certificates
                .leaves
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            let registry = certificates.published.load();
            let rows = registry.zones.iter().filter_map(|zone| {
                let leaf = leaves.get(&Identity(zone.origin.clone()))?;
                let ends = leaf
                    .not_after
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                Some((vec![zone.origin.as_str()], ends.as_secs_f64().trunc()))
            });
            vec![NOT_AFTER.with_rows(rows)]
        };
        registry.register(Box::new(Computed::new(&[NOT_AFTER], compute)?))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = crate::host::normal(hello.server_name()?)?;
        let registry = self.published.load();
        let identity = Self::identity(&registry, &name)?;
        self.leaf(&registry, &identity)
            .map(|leaf| Arc::clone(&leaf.key))
    }
}

/// Resolvers and secondaries often name no server: they get the first zone's certificate.
#[derive(Debug)]
struct ForDns(Arc<Certificates>);

impl ResolvesServerCert for ForDns {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.server_name().is_some() {
            return self.0.resolve(hello);
        }
        let registry = self.0.published.load();
        let identity = Identity(registry.zones.first()?.origin.clone());
        let leaf = self.0.leaf(&registry, &identity)?;
        Some(Arc::clone(&leaf.key))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

/// What is wrong with a certificate given as files, if anything: unreadable, not a pair, ended, or
/// for other names than the zone's.
///
/// # Errors
/// Says what is wrong.
pub fn check(files: &CertificateFiles, origin: &str) -> Result<(), String> {
    let leaf = from_files(files)?;
    if leaf.not_after <= SystemTime::now() {
        return Err(format!(
            "the certificate in {} has ended",
            files.chain.display()
        ));
    }
    let wanted = format!("*.{origin}");
    let (_, parsed) = leaf
        .key
        .cert
        .first()
        .and_then(|der| x509_parser::parse_x509_certificate(der).ok())
        .ok_or_else(|| format!("{} holds no certificate", files.chain.display()))?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let speaks = names.is_some_and(|names| {
        names.value.general_names.iter().any(
            |name| matches!(name, GeneralName::DNSName(name) if name.eq_ignore_ascii_case(&wanted)),
        )
    });
    if speaks {
        Ok(())
    } else {
        Err(format!(
            "the certificate in {} is not for {wanted}",
            files.chain.display()
        ))
    }
}

/// Reads a certificate given as files; that key and leaf belong together is checked.
fn from_files(files: &CertificateFiles) -> Result<Leaf, String> {
    let chain = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| format!("{}: {error}", files.chain.display()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("{}: {error}", files.key.display()))?;
    let leaf = chain
        .first()
        .ok_or_else(|| format!("{} holds no certificate", files.chain.display()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| format!("{}: {error}", files.chain.display()))?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = UNIX_EPOCH + Duration::from_secs(seconds);
    let key = CertifiedKey::from_der(chain, key, &default_provider())
        .map_err(|error| error.to_string())?;
    Ok(Leaf {
        key: key.into(),
        not_after,
        files: Some(files.clone()),
    })
}

/// Leaves the server name with the connection, for requests to be held against.
struct RememberServerName;

#[async_trait]
impl TlsAccept for RememberServerName {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let name = crate::host::normal(tls.server_name()?)?;
        Some(Arc::new(ServerName(name)))
    }
}
