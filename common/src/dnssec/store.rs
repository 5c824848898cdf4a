//! The state files: `dnssec/<origin>.json` in the edge's folder, one for each signed zone.
//!
//! The server and commands both write them. Whoever writes locks the folder, reads, changes and
//! replaces; whoever reads needs no lock, since a file is replaced as a whole. Lost keys break a zone
//! until its parent has others, so a file that can't be understood is told of and never replaced.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};

use super::{
    clock::{LAST, Moment, seconds},
    key::{Key, KeyFailure, Role},
    policy::Policy,
    rollover::{self, Refusal},
    zone_keys::{Held, MOST_KEYS, State, Ttls, ZoneKeys},
};
use crate::{
    durable::{self, Access},
    paths,
    stamp::Stamp,
};

/// The form of the file.
const VERSION: u32 = 1;
/// A file takes about 2 KiB.
const FILE_BYTES: u64 = 64 << 10;
/// A PKCS#8 document of P-256 takes 138 octets.
const PKCS8_BYTES: usize = 512;
/// How long another process may hold the lock; it needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// More zones than this are read anew now and then, rather than remembered.
const MOST_REMEMBERED: usize = 10_000;

/// Why the keys of a zone can't be had, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Only the server makes keys.
    #[error(
        "{origin} has no DNSSEC keys yet: `nuage serve` makes them in {} when it first serves the zone signed",
        path.display()
    )]
    Missing {
        /// The zone.
        origin: String,
        /// Where they would be.
        path: PathBuf,
    },
    /// Reading, writing or locking failed.
    #[error("can't {what} {}, which holds DNSSEC keys", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// The file is there and makes no sense.
    #[error(
        "{} is damaged: {why}. It is left as it is, since {origin} can't be signed without the keys in it: put back a copy from a backup. Where there is none, have the DS records of {origin} taken out of the parent zone, wait until they have expired, and remove the file: new keys are then made",
        path.display()
    )]
    Damaged {
        /// The zone.
        origin: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never a part of it.
        why: String,
    },
    /// Another process does not let go.
    #[error("another process has held the lock on {} for {} seconds: see who it is with `fuser`", path.display(), PATIENCE.as_secs())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A command would write into a folder of somebody else, who could lead it anywhere.
    #[error(
        "{} belongs to user {owner}: run this as that user, such as `sudo -u nuage-edge nuage zone …`",
        path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
    },
    /// No key can be made.
    #[error("can't make a DNSSEC key for {origin}")]
    Key {
        /// The zone.
        origin: String,
        /// Why.
        #[source]
        error: KeyFailure,
    },
    /// Not now.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The file as it is written. No `Debug`: it holds secrets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// For whoever opens it.
    about: String,
    version: u32,
    origin: String,
    ttls: Ttls,
    keys: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    role: Role,
    tag: u16,
    state: State,
    /// Seconds since 1970.
    since: u64,
    /// Seconds after that before the next step.
    wait: u64,
    /// PKCS#8 in hexadecimal digits.
    secret: String,
}

/// What was read or written last of one zone.
#[derive(Debug)]
struct Remembered {
    stamp: Stamp,
    keys: Arc<ZoneKeys>,
    /// When the server last looked.
    looked: Option<Moment>,
}

/// The keys of all zones, in a folder of files.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    zones: Mutex<HashMap<Name, Remembered>>,
}

impl Store {
    /// The store in the edge's folder ([`crate::Config`]'s `edge`). Nothing is read or made yet.
    pub fn open(edge: &Path) -> Self {
        Self {
            folder: edge.join("dnssec"),
            zones: Mutex::default(),
        }
    }

    /// The file of a zone's keys.
    pub fn path(&self, origin: &Name) -> PathBuf {
        self.folder
            .join(format!("{}.json", paths::of_origin(origin)))
    }

    /// The keys of a zone, for the server: made at first use, changed by what is due, and saved before
    /// they are returned. Cheap while the file is unchanged and nothing is due, so it may be called at
    /// any time; compare with what it returned before to know whether to sign anew.
    ///
    /// # Errors
    /// [`KeyError`]; what was returned before is still good for signing.
    pub fn keys(
        &self,
        origin: &Name,
        policy: &Policy,
        now: Moment,
    ) -> Result<Arc<ZoneKeys>, KeyError> {
        let origin = &canonical(origin);
        let path = self.path(origin);
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let set = zones
            .get(origin)
            .and_then(|zone| zone.looked)
            .map_or(0, |looked| now.set_since(&looked));
        if let Some(zone) = zones.get_mut(origin)
            && set == 0
            && stamp(&path).ok() == Some(zone.stamp)
            && !zone.keys.is_due(policy, now.wall)
        {
            zone.looked = Some(now);
            return Ok(Arc::clone(&zone.keys));
        }
        self.make_folder()?;
        let _lock = self.lock()?;
        let (mut keys, mut changed) = match read(&path, origin) {
            Ok(keys) => (keys, false),
            Err(KeyError::Missing { .. }) => match zones.get(origin) {
                Some(zone) => {
                    tracing::warn!(path = %path.display(), "the DNSSEC keys in use have lost their file: writing it anew");
                    (ZoneKeys::clone(&zone.keys), true)
                }
                None => {
                    let keys =
                        ZoneKeys::first(origin.clone(), policy, now.wall, &mut Key::generate)
                            .map_err(|error| no_key(origin, error))?;
                    tracing::info!(%origin, ksk = ?keys.signing_keys().next(), zsk = ?keys.zone_key(), "DNSSEC keys made");
                    (keys, true)
                }
            },
            Err(error) => return Err(error),
        };
        if set != 0 {
            tracing::warn!(%origin, seconds = set, "the clock was set: waits of DNSSEC rollovers go on from where they were");
            keys.move_times(set, policy, seconds(now.wall));
            changed = true;
        }
        changed |= rollover::advance(&mut keys, policy, now.wall, &mut Key::generate)
            .map_err(|error| no_key(origin, error))?;
        if changed {
            save(&path, &keys)?;
            tracing::info!(%origin, keys = %summary(&keys), "DNSSEC keys changed");
        }
        self.remember(&mut zones, keys, &path, Some(now))
    }

    /// The keys of a zone as they are, for commands. Makes and changes nothing.
    ///
    /// # Errors
    /// There are none yet, or the file can't be read.
    pub fn read(&self, origin: &Name) -> Result<ZoneKeys, KeyError> {
        let origin = canonical(origin);
        read(&self.path(&origin), &origin)
    }

    /// Starts a rollover now.
    ///
    /// # Errors
    /// [`KeyError::Refused`] while one is under way, and whatever files do.
    pub fn roll(
        &self,
        origin: &Name,
        role: Role,
        policy: &Policy,
        now: SystemTime,
    ) -> Result<Arc<ZoneKeys>, KeyError> {
        self.change(origin, |keys| {
            rollover::start(keys, role, policy, now, &mut Key::generate)
                .map_err(|error| no_key(origin, error))??;
            Ok(())
        })
    }

    /// Takes somebody's word that the parent zone holds [`ZoneKeys::ds`].
    ///
    /// # Errors
    /// [`KeyError::Refused`] when there is nothing to confirm, and whatever files do.
    pub fn confirm_ds(
        &self,
        origin: &Name,
        policy: &Policy,
        now: SystemTime,
    ) -> Result<Arc<ZoneKeys>, KeyError> {
        self.change(origin, |keys| Ok(rollover::confirm(keys, policy, now)?))
    }

    /// What to say when a zone that isn't signed, or no longer, has keys whose DS the parent may hold.
    pub fn warning_when_unsigned(&self, origin: &Name) -> Option<String> {
        let keys = self.read(origin).ok()?;
        keys.may_be_trusted().then(|| {
            format!(
                "{} is not signed, but its parent zone may hold a DS record, by which resolvers refuse it: sign it again, have the DS taken out, wait until it has expired, and only then end signing; remove {} afterwards",
                plain(origin),
                self.path(origin).display()
            )
        })
    }

    fn change(
        &self,
        origin: &Name,
        change: impl FnOnce(&mut ZoneKeys) -> Result<(), KeyError>,
    ) -> Result<Arc<ZoneKeys>, KeyError> {
        let origin = &canonical(origin);
        let path = self.path(origin);
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a folder there is nothing to lock, and nothing to change.
        if !self.folder.exists() {
            read(&path, origin)?;
        }
        self.is_ours()?;
        let _lock = self.lock()?;
        let mut keys = read(&path, origin)?;
        change(&mut keys)?;
        save(&path, &keys)?;
        let looked = zones.get(origin).and_then(|zone| zone.looked);
        self.remember(&mut zones, keys, &path, looked)
    }

    fn remember(
        &self,
        zones: &mut HashMap<Name, Remembered>,
        keys: ZoneKeys,
        path: &Path,
        looked: Option<Moment>,
    ) -> Result<Arc<ZoneKeys>, KeyError> {
        let stamp = stamp(path).map_err(|error| failed("look at", path, error))?;
        let origin = keys.origin.clone();
        let keys = Arc::new(keys);
        let remembered = Remembered {
            stamp,
            keys: Arc::clone(&keys),
            looked,
        };
        if zones.len() >= MOST_REMEMBERED && !zones.contains_key(&origin) {
            zones.clear();
        }
        zones.insert(origin, remembered);
        Ok(keys)
    }

    fn make_folder(&self) -> Result<(), KeyError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(|error| failed("make the folder", &self.folder, error))
    }

    fn is_ours(&self) -> Result<(), KeyError> {
        let owner = |path: &Path| {
            fs::metadata(path)
                .map(|of| of.uid())
                .map_err(|error| failed("look at", path, error))
        };
        // What the kernel says of this process belongs to whom it runs as.
        let (ours, owner) = (owner(Path::new("/proc/self"))?, owner(&self.folder)?);
        let path = self.folder.clone();
        if ours == owner {
            Ok(())
        } else {
            Err(KeyError::NotOurs { path, owner })
        }
    }

    /// Locks the folder itself: a lock file would have to be everybody's who may write the others.
    fn lock(&self) -> Result<File, KeyError> {
        let path = &self.folder;
        let folder = File::open(path).map_err(|error| failed("open", path, error))?;
        let start = Instant::now();
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(folder),
                Err(fs::TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(KeyError::Locked { path: path.clone() });
                }
                Err(fs::TryLockError::Error(error)) => return Err(failed("lock", path, error)),
            }
        }
    }
}

fn failed(what: &'static str, path: &Path, error: io::Error) -> KeyError {
    KeyError::File {
        what,
        path: path.to_owned(),
        error,
    }
}

fn no_key(origin: &Name, error: KeyFailure) -> KeyError {
    KeyError::Key {
        origin: plain(origin),
        error,
    }
}

/// An origin as people write it.
fn plain(origin: &Name) -> String {
    origin.to_string().trim_end_matches('.').replace("\\/", "/")
}

/// Names are the same whatever their case (RFC 4343).
fn canonical(origin: &Name) -> Name {
    let mut name = origin.to_lowercase();
    name.set_fqdn(true);
    name
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    fs::metadata(path).map(|of| Stamp::from(&of))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() > 2 * PKCS8_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    rest.is_empty()
        .then(|| pairs.iter().map(byte).collect())
        .flatten()
}

/// The keys for a log line: `KSK 1 active, ZSK 2 retired`.
fn summary(keys: &ZoneKeys) -> String {
    let one = |held: &Held| format!("{:?} {:?}", held.key, held.state).to_lowercase();
    let all: Vec<String> = keys.held.iter().map(one).collect();
    all.join(", ")
}

fn save(path: &Path, keys: &ZoneKeys) -> Result<(), KeyError> {
    let entry = |held: &Held| Entry {
        role: held.key.role(),
        tag: held.key.tag(),
        state: held.state,
        since: held.since,
        wait: held.wait,
        secret: hex(held.key.pkcs8()),
    };
    let document = Document {
        about: format!(
            "Secret: the DNSSEC keys of {}. Back it up; without it the zone breaks.",
            plain(&keys.origin)
        ),
        version: VERSION,
        origin: plain(&keys.origin),
        ttls: keys.ttls.clone(),
        keys: keys.held.iter().map(entry).collect(),
    };
    serde_json::to_vec_pretty(&document)
        .map_err(io::Error::from)
        .and_then(|mut text| {
            text.push(b'\n');
            durable::replace(path, &text, Access::Owner)
        })
        .map_err(|error| failed("write", path, error))
}

fn read(path: &Path, origin: &Name) -> Result<ZoneKeys, KeyError> {
    let mut bytes = Vec::new();
    let opened = fs::metadata(path).and_then(|of| {
        // Reading a pipe could take for ever.
        if !of.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let file = File::open(path)?;
        file.take(FILE_BYTES + 1).read_to_end(&mut bytes)
    });
    match opened {
        Ok(_) => parse(&bytes, origin).map_err(|why| KeyError::Damaged {
            origin: plain(origin),
            path: path.to_owned(),
            why,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(KeyError::Missing {
            origin: plain(origin),
            path: path.to_owned(),
        }),
        Err(error) => Err(failed("read", path, error)),
    }
}

fn parse(bytes: &[u8], origin: &Name) -> Result<ZoneKeys, String> {
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_BYTES) {
        return Err(format!("it is larger than {FILE_BYTES} octets"));
    }
    // The parser's own words may quote a secret.
    let document: Document = serde_json::from_slice(bytes).map_err(|error| {
        format!(
            "line {}, column {} is not what was written there ({:?} error)",
            error.line(),
            error.column(),
            error.classify()
        )
    })?;
    if document.version != VERSION {
        return Err(format!(
            "it has version {}, and this nuage knows version {VERSION}",
            document.version
        ));
    }
    if document.origin != plain(origin) {
        return Err(format!("it holds the keys of {:?}", document.origin));
    }
    if document.keys.len() > MOST_KEYS {
        return Err("it holds more keys than a zone can have".to_owned());
    }
    let held = |entry: Entry| {
        let key = unhex(&entry.secret)
            .and_then(|pkcs8| Key::from_pkcs8(entry.role, &pkcs8).ok())
            .filter(|key| key.tag() == entry.tag)
            .ok_or_else(|| format!("the secret of key {} is not that key's", entry.tag))?;
        if entry.since > LAST || entry.wait > LAST {
            return Err(format!("the times of key {} are out of range", entry.tag));
        }
        Ok(Held {
            key,
            state: entry.state,
            since: entry.since,
            wait: entry.wait,
        })
    };
    let keys = ZoneKeys {
        origin: origin.clone(),
        held: document
            .keys
            .into_iter()
            .map(held)
            .collect::<Result<_, String>>()?,
        ttls: document.ttls,
    };
    keys.check()?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::dnssec::{Dnssec, clock::time};

    const HOUR: u64 = 3_600;
    const START: u64 = 1_800_000_000;

    fn origin() -> Name {
        Name::from_ascii("w.example.").unwrap()
    }

    fn policy() -> Policy {
        Policy::new(&Dnssec::default(), 300, 300)
    }

    fn at(seconds: u64) -> Moment {
        Moment {
            wall: time(START + seconds),
            steady: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn keys_are_made_once_and_read_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path());
        let none = store.read(&origin()).unwrap_err();
        assert!(
            none.to_string().contains("`nuage serve` makes them"),
            "{none}"
        );
        let made = store.keys(&origin(), &policy(), at(0)).unwrap();
        let again = store.keys(&origin(), &policy(), at(9)).unwrap();
        assert!(Arc::ptr_eq(&made, &again), "nothing was read");
        let restarted = Store::open(folder.path());
        let upper = Name::from_ascii("W.EXAMPLE.").unwrap();
        let read = restarted.keys(&upper, &policy(), at(60)).unwrap();
        assert_eq!(read.held, made.held);
        assert_eq!(read.ttls, made.ttls);

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path(&origin())), 0o600);
        assert_eq!(mode(&folder.path().join("dnssec")), 0o700);
        let secret = hex(made.zone_key().pkcs8());
        assert!(
            fs::read_to_string(store.path(&origin()))
                .unwrap()
                .contains(&secret)
        );
        assert!(!format!("{store:?} {made:?} {}", summary(&made)).contains(&secret[60..]));
    }

    #[test]
    fn what_another_process_changes_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (server, command) = (Store::open(folder.path()), Store::open(folder.path()));
        let before = server.keys(&origin(), &policy(), at(0)).unwrap();
        command
            .roll(&origin(), Role::Zsk, &policy(), at(10).wall)
            .unwrap();
        let again = command.roll(&origin(), Role::Zsk, &policy(), at(11).wall);
        assert!(
            matches!(again, Err(KeyError::Refused(Refusal::UnderWay(Role::Zsk)))),
            "{again:?}"
        );
        let after = server.keys(&origin(), &policy(), at(20)).unwrap();
        assert!(before != after && after.dnskeys().len() == 3);
    }

    #[test]
    fn all_who_come_first_get_the_same_keys() {
        let folder = tempfile::tempdir().unwrap();
        let made: Vec<_> = std::thread::scope(|scope| {
            let each = || {
                Store::open(folder.path())
                    .keys(&origin(), &policy(), at(0))
                    .unwrap()
            };
            let all: Vec<_> = (0..8).map(|_| scope.spawn(each)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(made.iter().all(|keys| keys.held == made[0].held));
    }

    #[test]
    fn a_damaged_file_is_told_of_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path());
        let keys = store.keys(&origin(), &policy(), at(0)).unwrap();
        let path = store.path(&origin());
        let good = fs::read_to_string(&path).unwrap();
        let tag = keys.zone_key().tag().to_string();
        let secret = hex(keys.zone_key().pkcs8());
        let half = good.len() / 2;
        let shift = |text: &str| text.replacen(&secret, &format!("{}00", &secret[2..]), 1);
        for (damaged, told) in [
            (String::new(), "line 1"),
            (good[..half].to_owned(), "is not what was written there"),
            (
                good.replace("w.example\",", "v.example\","),
                "the keys of \"v.example\"",
            ),
            (
                good.replace("\"version\": 1", "\"version\": 2"),
                "version 2",
            ),
            (good.replace("\"active\"", "\"retired\""), "one active ZSK"),
            (good.replace("\"zsk\"", "\"ksk\""), "not that key's"),
            (shift(&good), "not that key's"),
            (
                good.replacen("\"since\": 18", "\"since\": 9999998", 1),
                "out of range",
            ),
            // A secret where a number belongs must not come back in the error.
            (
                good.replace(
                    &format!("\"tag\": {tag}"),
                    &format!("\"tag\": \"{secret}\""),
                ),
                "Data error",
            ),
            (" ".repeat(70_000), "larger"),
        ] {
            assert_ne!(damaged, good, "{told}");
            durable::replace(&path, damaged.as_bytes(), Access::Owner).unwrap();
            for store in [&store, &Store::open(folder.path())] {
                for error in [
                    store.keys(&origin(), &policy(), at(HOUR)).unwrap_err(),
                    store
                        .roll(&origin(), Role::Zsk, &policy(), at(HOUR).wall)
                        .unwrap_err(),
                ] {
                    let text = format!("{error} {error:?}");
                    assert!(matches!(error, KeyError::Damaged { .. }), "{text}");
                    assert!(
                        text.contains(told) && text.contains("backup"),
                        "{told}: {text}"
                    );
                    assert!(!text.contains(&secret[60..]), "{text}");
                }
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
        durable::replace(&path, good.as_bytes(), Access::Owner).unwrap();
        assert_eq!(store.keys(&origin(), &policy(), at(HOUR)).unwrap(), keys);
    }

    #[test]
    fn keys_in_use_outlive_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path());
        let keys = store.keys(&origin(), &policy(), at(0)).unwrap();
        fs::remove_dir_all(folder.path().join("dnssec")).unwrap();
        assert_eq!(store.keys(&origin(), &policy(), at(60)).unwrap(), keys);
        assert_eq!(store.read(&origin()).unwrap().held, keys.held);
    }

    #[test]
    fn a_held_lock_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path());
        store.keys(&origin(), &policy(), at(0)).unwrap();
        let lock = Store::open(folder.path()).lock().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| store.roll(&origin(), Role::Zsk, &policy(), at(1).wall));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiting.is_finished());
            drop(lock);
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_classless_reverse_zone_has_its_keys() {
        let folder = tempfile::tempdir().unwrap();
        let classless = Name::from_labels([b"0/25".as_slice(), b"2", b"arpa"]).unwrap();
        let store = Store::open(folder.path());
        let keys = store.keys(&classless, &policy(), at(0)).unwrap();
        assert_eq!(store.read(&classless).unwrap().held, keys.held);
    }

    #[test]
    fn ending_to_sign_a_trusted_zone_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path());
        assert_eq!(store.warning_when_unsigned(&origin()), None);
        store.keys(&origin(), &policy(), at(0)).unwrap();
        assert_eq!(
            store.warning_when_unsigned(&origin()),
            None,
            "no DS was asked for"
        );
        store.keys(&origin(), &policy(), at(3 * HOUR)).unwrap();
        let warning = store.warning_when_unsigned(&origin()).unwrap();
        assert!(
            warning.starts_with("w.example is not signed, but"),
            "{warning}"
        );
    }
}
