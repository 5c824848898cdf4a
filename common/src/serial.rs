//! SOA serials that grow with every change (RFC 1982) and survive restarts.
//!
//! The state file remembers each zone's serial and the digest of the content it stood for: the same
//! content keeps its serial, another content gets a later one. Serials start at the clock's seconds,
//! so that even a lost state file does not send them backwards.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::durable::{self, Access};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    serial: u32,
    digest: String,
}

/// The serials handed out so far, by origin.
#[derive(Clone, Debug, Default)]
pub struct Serials {
    path: Option<PathBuf>,
    entries: BTreeMap<String, Entry>,
    changed: bool,
}

impl Serials {
    /// Reads the serials kept in a state folder; none are fine, and an unreadable file too: the
    /// clock then gives later ones.
    pub fn load(state: &Path) -> Self {
        let path = state.join("serials.json");
        let entries = std::fs::read(&path)
            .ok()
            .and_then(|bytes| {
                serde_json::from_slice(&bytes)
                    .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "serials unreadable: starting from the clock"))
                    .ok()
            })
            .unwrap_or_default();
        Self {
            path: Some(path),
            entries,
            changed: false,
        }
    }

    /// Never writes the file.
    pub(crate) fn forget_file(&mut self) {
        self.path = None;
    }

    /// The serial for this content of a zone.
    pub fn assign(&mut self, origin: &str, digest: &[u8; 32], now: SystemTime) -> u32 {
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(entry) = self.entries.get(origin)
            && entry.digest == digest
        {
            return entry.serial;
        }
        let seconds = now
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_secs());
        // Serial arithmetic is modulo 2^32 (RFC 1982 §3).
        let clock = u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(1);
        let serial = match self.entries.get(origin) {
            Some(last) if !later(clock, last.serial) => last.serial.wrapping_add(1),
            _ => clock,
        };
        self.entries
            .insert(origin.to_owned(), Entry { serial, digest });
        self.changed = true;
        serial
    }

    /// The serial handed out last.
    pub fn last(&self, origin: &str) -> Option<u32> {
        self.entries.get(origin).map(|entry| entry.serial)
    }

    /// Writes the file when something changed. Call it before publishing: a serial that was seen
    /// must never stand for another content.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn save(&mut self) -> io::Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else {
            return Ok(());
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        durable::replace(
            path,
            &serde_json::to_vec_pretty(&self.entries)?,
            Access::Everybody,
        )?;
        self.changed = false;
        Ok(())
    }
}

/// Whether serial `a` is later than `b` (RFC 1982 §3.2).
pub fn later(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn serials_follow_content_and_survive_a_restart_and_a_clock_set_back() {
        let state = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut serials = Serials::load(state.path());
        let first = serials.assign("a.example", &[1; 32], now);
        assert_eq!(first, 1_800_000_000);
        assert_eq!(
            serials.assign("a.example", &[1; 32], now + Duration::from_secs(9)),
            first
        );
        serials.save().unwrap();

        let mut restarted = Serials::load(state.path());
        assert_eq!(
            restarted.assign("a.example", &[1; 32], now + Duration::from_secs(99)),
            first
        );
        assert_eq!(
            restarted.assign("a.example", &[2; 32], UNIX_EPOCH),
            first + 1
        );
        assert_eq!(
            restarted.assign("a.example", &[3; 32], UNIX_EPOCH),
            first + 2
        );
    }

    #[test]
    fn later_wraps_around() {
        assert!(later(1, 0));
        assert!(later(0, u32::MAX));
        assert!(!later(u32::MAX, 0));
        assert!(!later(5, 5));
    }
}
