//! Who signs: the server, with the keys of its store; nobody else, but for whoever asks to.

use std::{path::Path, sync::Arc, time::SystemTime};

use hickory_proto::rr::Name;
use ring::digest::{Context, SHA256};

use super::{
    Dnssec, Kept, KeyError, KeyFailure, Moment, Policy, Sealed, Store, ZoneKeys,
    sign::{new_version, sign, sign_soa},
};
use crate::{authority::Authority, serial::Serials, served::Served};

/// Ending of the files beside those of the keys.
const SIGNATURES: &str = "signatures";

/// The keys of all zones, and what went wrong with them.
#[derive(Debug, Default)]
pub struct Signers {
    store: Option<Store>,
    /// Whether keys are made, and rolled over when it is time.
    keeps: bool,
    /// What keeps zones from being signed, by origin.
    pub(crate) troubles: Vec<(String, String)>,
}

/// Why a zone can't be signed.
#[derive(Debug, thiserror::Error)]
enum SignError {
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Sign(#[from] KeyFailure),
}

impl Signers {
    /// Signs with the keys in the edge's folder. The server keeps them: makes them at first use and
    /// rolls them over.
    pub(crate) fn of(edge: &Path, keeps: bool) -> Self {
        Self {
            store: Some(Store::open(edge)),
            keeps,
            troubles: Vec::new(),
        }
    }

    /// Whether anything is signed here.
    pub(crate) fn signs(&self) -> bool {
        self.store.is_some()
    }

    /// A zone in its signed form: the one before while that is right. `None` when nobody signs here, or
    /// nobody can.
    pub(crate) fn sign(
        &mut self,
        content: &Arc<Authority>,
        digest: &[u8; 32],
        dnssec: &Dnssec,
        before: Option<&Arc<Served>>,
        serials: &mut Serials,
        now: SystemTime,
    ) -> Option<Arc<Served>> {
        let store = self.store.as_ref()?;
        let before_signed = before.filter(|before| before.signed.is_some());
        let signed = self
            .keys(store, content, dnssec, before_signed)
            .map_err(SignError::from)
            .and_then(|keys| {
                // Commands read what there is, and leave no file behind.
                let file = store
                    .path(&Name::from(&content.apex))
                    .with_extension(SIGNATURES);
                let last = Last {
                    form: before_signed,
                    file: &file,
                    writes: self.keeps,
                };
                Ok(form(content, digest, keys, &last, serials, now)?)
            });
        match signed {
            Ok(served) => Some(served),
            Err(error) => {
                let origin = plain(content);
                let cause = std::error::Error::source(&error)
                    .map_or_else(String::new, |cause| format!(": {cause}"));
                self.troubles
                    .push((origin, format!("can't be signed: {error}{cause}")));
                // What is signed stays: unsigned it would be bogus to whoever trusts its keys.
                before_signed.cloned()
            }
        }
    }

    fn keys(
        &self,
        store: &Store,
        content: &Authority,
        dnssec: &Dnssec,
        before: Option<&Arc<Served>>,
    ) -> Result<Arc<ZoneKeys>, KeyError> {
        let origin = Name::from(&content.apex);
        if !self.keeps {
            return store.read(&origin).map(Arc::new);
        }
        let policy = Policy::of(dnssec, content);
        let keys = store.keys(&origin, &policy, Moment::now());
        match (keys, before.and_then(|before| before.keys.clone())) {
            // The keys in use are still good.
            (Err(error), Some(keys)) => {
                tracing::error!(%error, origin = %plain(content), "the zone is signed with the keys it had");
                Ok(keys)
            }
            (keys, _) => keys,
        }
    }

    /// Whether a zone as it is served wants to be signed anew.
    pub(crate) fn wants(&self, served: &Served, dnssec: &Dnssec, now: SystemTime) -> bool {
        let (Some(store), true) = (&self.store, self.keeps) else {
            return false;
        };
        if served
            .signed
            .as_ref()
            .is_some_and(|signed| signed.is_due(now))
        {
            return true;
        }
        let policy = Policy::of(dnssec, &served.content);
        let origin = Name::from(&served.content.apex);
        match store.keys(&origin, &policy, Moment::now()) {
            // One that could not be signed is, as soon as it can.
            Ok(new) => served.keys.as_ref() != Some(&new),
            // It is told of when something changes.
            Err(_) => false,
        }
    }
}

/// What signatures may be taken from.
struct Last<'a> {
    /// The zone as it is served.
    form: Option<&'a Arc<Served>>,
    /// Signatures from before a restart.
    file: &'a Path,
    writes: bool,
}

/// The signed form: the last one itself when nothing is to be signed and nothing changed.
fn form(
    content: &Arc<Authority>,
    digest: &[u8; 32],
    keys: Arc<ZoneKeys>,
    last: &Last<'_>,
    serials: &mut Serials,
    now: SystemTime,
) -> Result<Arc<Served>, KeyFailure> {
    let before = last.form;
    // Digests tell what equality of records does not: a TTL, a letter's case.
    if let Some(before) = before
        && let Some(signed) = &before.signed
        && before.digest == *digest
        && before.keys.as_ref() == Some(&keys)
        && !signed.is_due(now)
    {
        return Ok(Arc::clone(before));
    }
    let previous = before.and_then(|before| Some((&*before.authority, before.signed.as_ref()?)));
    let kept = previous.is_none().then(|| Kept::read(last.file)).flatten();
    // What an edit makes is added to the file, unless all of it is written anew.
    let since = previous
        .map(|(_, signed)| signed)
        .filter(|signed| !signed.is_due(now))
        .filter(|signed| Kept::takes(last.file, signed.version, signed.count()))
        .map(|signed| signed.version);
    let whole = last.writes && since.is_none();
    let mut sealed = sign(content, &keys, previous, kept.as_ref(), whole, now)?;
    tracing::info!(origin = %plain(content), signatures = sealed.made, "signed");
    let origin = plain(content);
    let known = serials.last(&origin);
    let mut serial = serials.assign(&origin, &whole_digest(digest, &sealed, &keys), now);
    let mut to_keep = std::mem::take(&mut sealed.to_keep);
    let mut changed = sealed.made > 0 || kept.as_ref().is_some_and(|kept| kept.torn);
    // A serial has one signature, as secondaries compare what they have.
    let unchanged = before.filter(|before| before.serial == serial && sealed.made == 0);
    let soa = match unchanged.and_then(|before| before.signed.as_ref()) {
        Some(signed) => signed.soa.clone(),
        None => {
            let sign = |sealed: &Sealed, serial| {
                sign_soa(&sealed.authority, serial, &keys, kept.as_ref(), now)
            };
            let mut soa = sign(&sealed, serial)?;
            if soa.is_new && known == Some(serial) {
                // The one this serial had is lost.
                sealed.signed.version = new_version(now);
                serial = serials.assign(&origin, &whole_digest(digest, &sealed, &keys), now);
                soa = sign(&sealed, serial)?;
            }
            changed |= soa.is_new;
            to_keep.push((soa.set, soa.signature.clone()));
            soa.signature
        }
    };
    if last.writes && changed {
        let version = sealed.signed.version;
        let kept = match since {
            Some(since) => Kept::append(last.file, since, version, &to_keep),
            None => Kept::write(last.file, version, &to_keep),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, file = %last.file.display(), "can't keep the signatures: the next start makes them anew");
        }
    }
    Ok(Arc::new(Served::signed(
        Arc::clone(content),
        *digest,
        sealed,
        serial,
        soa,
        keys,
    )))
}

/// What tells one content of a signed zone from another: with another signature it has another serial.
fn whole_digest(content: &[u8; 32], sealed: &Sealed, keys: &ZoneKeys) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(content);
    context.update(&sealed.signed.version.to_be_bytes());
    for key in keys.dnskeys() {
        context.update(&key.flags().to_be_bytes());
        context.update(&key.calculate_key_tag().unwrap_or(0).to_be_bytes());
    }
    let mut whole = [0; 32];
    whole.copy_from_slice(context.finish().as_ref());
    whole
}

fn plain(content: &Authority) -> String {
    content.apex.to_string().trim_end_matches('.').to_owned()
}
