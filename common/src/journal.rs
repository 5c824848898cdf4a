//! The last changes of each zone, for secondaries that take only what changed (RFC 1995).
//!
//! A file a zone in one folder: a line that names the format, then entries of length, checksum and
//! content, each on the disk before its content is served. A torn last entry (the process was killed,
//! the disk was full) is cut off. What doesn't lead to the serial being served is of no use and goes:
//! secondaries then take the whole zone.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use hickory_proto::rr::LowerName;
use ring::digest::{SHA256, digest};

use crate::{
    difference::{Difference, MOST_OCTETS},
    durable::{self, Access},
    paths,
    registry::Registry,
};

/// Differences kept of one zone. Past this or [`MOST_OCTETS`] the older half goes.
const MOST_DIFFERENCES: usize = 100;
const FORMAT: &[u8] = b"nuage journal 1\n";
/// How much of the SHA-256 of an entry is kept with it.
const CHECKSUM_OCTETS: usize = 16;
/// A file longer than this is none of ours.
const FILE_OCTETS: u64 = 16 << 20;
const EXTENSION: &str = "journal";

type Histories = HashMap<LowerName, Arc<Vec<Arc<Difference>>>>;

/// The journals of all zones. Readers share what they read and never wait.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    histories: ArcSwap<Histories>,
    /// Zones whose file holds what memory holds. One writer at a time.
    on_disk: Mutex<HashSet<LowerName>>,
}

impl Journal {
    /// Reads what leads to the serials being served, and removes the rest.
    pub fn open(folder: &Path, registry: &Registry) -> Arc<Self> {
        let mut histories = Histories::new();
        let mut kept = HashSet::new();
        if !registry.secondaries.is_empty() {
            for served in registry.served.iter() {
                let (authority, serial) = (&served.authority, served.serial);
                let file = file_of(folder, &authority.apex);
                match read(&file) {
                    Ok(history) if history.last().is_some_and(|last| last.to == serial) => {
                        kept.insert(file);
                        histories.insert(authority.apex.clone(), history.into());
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        tracing::warn!(file = %file.display(), %error, "journal unreadable: secondaries take the whole zone once");
                    }
                }
            }
        }
        let on_disk = histories.keys().cloned().collect();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = path.extension().is_some_and(|e| e == EXTENSION);
            if ours && !kept.contains(&path) {
                forget(&path);
            }
        }
        Arc::new(Self {
            folder: folder.to_owned(),
            histories: ArcSwap::from_pointee(histories),
            on_disk: Mutex::new(on_disk),
        })
    }

    /// Keeps what changed from one registry to the next; call it before the new one is published.
    pub fn follow(&self, old: &Registry, new: &Registry) {
        let mut stay = HashSet::new();
        for served in new.served.iter() {
            let apex = &served.authority.apex;
            let Some(before) = old.served_at(apex) else {
                continue;
            };
            if !new.secondaries.want(apex) {
                continue;
            }
            if before.serial == served.serial {
                stay.insert(apex.clone());
            } else if let Some(difference) = Difference::between(before, served) {
                stay.insert(apex.clone());
                self.append(apex, difference);
            }
        }
        let known: Vec<LowerName> = self.histories.load().keys().cloned().collect();
        for apex in known.iter().filter(|apex| !stay.contains(apex)) {
            self.clear(apex);
        }
    }

    /// Adds a difference to a zone's journal, on the disk first. A disk that refuses costs secondaries
    /// a whole transfer after the next start, and nothing before.
    pub fn append(&self, origin: &LowerName, difference: Difference) {
        let mut on_disk = self.writer();
        let file = file_of(&self.folder, origin);
        let known = self.histories.load().get(origin).cloned();
        let mut history: Vec<Arc<Difference>> = known
            .filter(|known| known.last().is_some_and(|last| last.to == difference.from))
            .map(|known| known.to_vec())
            .unwrap_or_default();
        let appends = !history.is_empty() && on_disk.contains(origin);
        history.push(Arc::new(difference));
        let shortened = shorten(&mut history);
        let written = if appends && !shortened {
            history
                .last()
                .map_or(Ok(()), |last| append(&file, &entry(last)))
        } else {
            write_all(&file, &history)
        };
        match written {
            Ok(()) => drop(on_disk.insert(origin.clone())),
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "can't write the journal; secondaries are served from memory until the next start");
                on_disk.remove(origin);
                forget(&file);
            }
        }
        self.change(|histories| drop(histories.insert(origin.clone(), history.into())));
    }

    /// Forgets a zone's changes.
    pub fn clear(&self, origin: &LowerName) {
        let mut on_disk = self.writer();
        on_disk.remove(origin);
        forget(&file_of(&self.folder, origin));
        self.change(|histories| drop(histories.remove(origin)));
    }

    /// The steps from one serial of a zone to another, if all of them are known.
    pub fn since(&self, origin: &LowerName, from: u32, to: u32) -> Option<Vec<Arc<Difference>>> {
        let history = self.histories.load().get(origin).cloned()?;
        // The journal may be one step ahead of the registry a reader holds.
        let end = history.iter().rposition(|step| step.to == to)?;
        let start = history.iter().rposition(|step| step.from == from)?;
        Some(history.get(start..=end)?.to_vec())
    }

    fn writer(&self) -> MutexGuard<'_, HashSet<LowerName>> {
        self.on_disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Histories)) {
        let mut histories = Histories::clone(&self.histories.load());
        change(&mut histories);
        self.histories.store(Arc::new(histories));
    }
}

/// Drops the older half when there is too much; whether there was.
fn shorten(history: &mut Vec<Arc<Difference>>) -> bool {
    let octets = |history: &[Arc<Difference>]| history.iter().map(|step| step.octets()).sum();
    let mut size: usize = octets(history);
    if history.len() <= MOST_DIFFERENCES && size <= MOST_OCTETS {
        return false;
    }
    let mut first = 0;
    while history.len() - first > 1
        && (history.len() - first > MOST_DIFFERENCES / 2 || size > MOST_OCTETS / 2)
    {
        size -= history[first].octets();
        first += 1;
    }
    history.drain(..first);
    true
}

fn entry(difference: &Difference) -> Vec<u8> {
    let content = difference.encode();
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut octets = Vec::with_capacity(content.len() + 4 + CHECKSUM_OCTETS);
    octets.extend_from_slice(&length.to_be_bytes());
    octets.extend_from_slice(&digest(&SHA256, &content).as_ref()[..CHECKSUM_OCTETS]);
    octets.extend_from_slice(&content);
    octets
}

fn append(file: &Path, entry: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(file)?;
    file.write_all(entry)?;
    file.sync_data()
}

fn write_all(file: &Path, history: &[Arc<Difference>]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut content = FORMAT.to_vec();
    for difference in history {
        content.extend(entry(difference));
    }
    durable::replace(file, &content, Access::Owner)
}

/// The entries of a file in sequence. What follows the last whole one is cut off.
fn read(path: &Path) -> io::Result<Vec<Arc<Difference>>> {
    let length = fs::metadata(path)?.len();
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    if length > FILE_OCTETS {
        return Err(invalid("too long to be ours"));
    }
    let content = fs::read(path)?;
    let mut rest = content
        .strip_prefix(FORMAT)
        .ok_or_else(|| invalid("not a journal"))?;
    let mut history: Vec<Arc<Difference>> = Vec::new();
    while let Some((difference, after)) = first_entry(rest) {
        if history
            .last()
            .is_some_and(|last| last.to != difference.from)
        {
            return Err(invalid("a step is missing"));
        }
        history.push(Arc::new(difference));
        rest = after;
    }
    if !rest.is_empty() {
        let whole = length.saturating_sub(rest.len() as u64);
        tracing::warn!(file = %path.display(), octets = rest.len(), "the end of the journal is torn and cut off");
        File::options().write(true).open(path)?.set_len(whole)?;
    }
    Ok(history)
}

fn first_entry(octets: &[u8]) -> Option<(Difference, &[u8])> {
    let (length, rest) = octets.split_first_chunk()?;
    let (checksum, rest) = rest.split_at_checked(CHECKSUM_OCTETS)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (content, rest) = rest.split_at_checked(length)?;
    if &digest(&SHA256, content).as_ref()[..CHECKSUM_OCTETS] != checksum {
        return None;
    }
    Some((Difference::decode(content)?, rest))
}

fn file_of(folder: &Path, origin: &LowerName) -> PathBuf {
    folder.join(format!("{}.{EXTENSION}", paths::of_origin(origin)))
}

fn forget(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %file.display(), %error, "can't remove a journal that is of no more use");
        }
        Ok(()) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{authority::Authority, config::Addresses, served::Served};
    use hickory_proto::rr::{Name, RData, Record, rdata::TXT};

    fn origin() -> LowerName {
        LowerName::new(&Name::from_ascii("w.example.").unwrap())
    }

    fn content(serial: u32) -> Served {
        let text = format!("content {serial}");
        let apex = Name::from(origin());
        let mut zone = Authority::new(apex.clone(), 60, &[], apex.clone(), Vec::new());
        let txt = RData::TXT(TXT::new(vec![text]));
        zone.add(Record::from_rdata(apex, 60, txt));
        Served::new(Arc::new(zone), serial)
    }

    fn step(from: u32) -> Difference {
        Difference::between(&content(from), &content(from + 1)).unwrap()
    }

    fn empty(folder: &Path) -> Arc<Journal> {
        let addresses = Addresses {
            ipv4: None,
            ipv6: None,
        };
        Journal::open(folder, &Registry::empty(addresses))
    }

    fn file(folder: &Path) -> PathBuf {
        folder.join("w.example.journal")
    }

    #[test]
    fn steps_are_found_from_any_serial_kept_and_half_of_them_go_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let journal = empty(folder.path());
        for serial in 0..101 {
            journal.append(&origin(), step(serial));
            assert_eq!(
                read(&file(folder.path())).unwrap(),
                **journal.histories.load().get(&origin()).unwrap()
            );
        }
        assert!(journal.since(&origin(), 50, 101).is_none());
        let steps = journal.since(&origin(), 51, 101).unwrap();
        assert_eq!(steps.len(), 50);
        assert_eq!((steps[0].from, steps[49].to), (51, 101));
        assert_eq!(
            journal.since(&origin(), 99, 100).unwrap().len(),
            1,
            "a reader of the registry before"
        );
        assert!(journal.since(&origin(), 101, 101).is_none());
        assert!(journal.since(&origin(), 7_000, 101).is_none());
        let texts: Vec<String> = steps[0]
            .removed()
            .map(|record| record.to_string())
            .collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].contains("SOA") && texts[0].contains(" 51 "));
        assert!(texts[1].contains("content 51"));

        journal.append(&origin(), step(500));
        assert!(
            journal.since(&origin(), 99, 501).is_none(),
            "a gap ends what was before"
        );
        journal.clear(&origin());
        assert!(!file(folder.path()).exists());
    }

    #[test]
    fn a_journal_torn_anywhere_keeps_its_whole_entries_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let journal = empty(folder.path());
        for serial in 0..3 {
            journal.append(&origin(), step(serial));
        }
        let path = file(folder.path());
        let whole = fs::read(&path).unwrap();
        for length in FORMAT.len()..whole.len() {
            let mut torn = whole[..length].to_vec();
            if length % 2 == 0 {
                // The file system had given the room but not yet the content.
                torn.resize(whole.len(), 0);
            }
            File::create(&path).unwrap().write_all(&torn).unwrap();
            let found = read(&path).unwrap();
            assert!(found.len() < 3);
            append(&path, &entry(&step(u32::try_from(found.len()).unwrap()))).unwrap();
            assert_eq!(read(&path).unwrap().len(), found.len() + 1);
        }
        File::create(&path).unwrap().write_all(b"nuage").unwrap();
        assert!(read(&path).is_err());
    }
}
