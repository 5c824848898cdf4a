//! Where sites' files live: `state/sites/<zone>/<site>/files`, owned by the site's own uid. A site
//! that is removed leaves its folder in `state/bin` for 30 days.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use time::{
    OffsetDateTime,
    format_description::well_known::{
        Iso8601,
        iso8601::{Config, EncodedConfig, TimePrecision},
    },
};

use crate::{backup, disk};

/// How long the files of a removed site are kept.
pub(crate) const KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Within an entry of the bin: the site's folder, and its disk's image if it has one.
pub(crate) const SITE: &str = "site";
pub(crate) const DISK: &str = "disk.ext4";

/// In an entry of the bin while its site is being given other files.
const UNFINISHED: &str = "restore-unfinished";
/// `20261122T183000Z`: sorts by time, and needs no quoting.
const STAMP: &Iso8601<STAMP_FORM> = &Iso8601;
const STAMP_FORM: EncodedConfig = Config::DEFAULT
    .set_use_separators(false)
    .set_time_precision(TimePrecision::Second {
        decimal_digits: None,
    })
    .encode();

/// The folders of all sites.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    state: PathBuf,
    /// Sites made ready just now: one visitor, a command and the start of control may all ask for it.
    preparing: Arc<Mutex<HashMap<String, Arc<Mutex<()>>>>>,
}

impl Folders {
    pub(crate) fn new(state: &Path) -> Self {
        // The engine mounts what it is told by its full name.
        let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
        Self {
            state,
            preparing: Arc::default(),
        }
    }

    /// A site's own folder; where it has a quota, its disk is mounted there.
    pub(crate) fn site(&self, site: &str) -> PathBuf {
        let (label, zone) = split(site);
        self.state.join("sites").join(zone).join(label)
    }

    /// What its container sees as /var/www/html.
    pub(crate) fn files(&self, site: &str) -> PathBuf {
        self.site(site).join("files")
    }

    /// What its container sees as /var/tmp: uploads on their way, sessions.
    pub(crate) fn scratch(&self, site: &str) -> PathBuf {
        self.site(site).join("tmp")
    }

    /// The image of its disk.
    pub(crate) fn image(&self, site: &str) -> PathBuf {
        let (label, zone) = split(site);
        self.state
            .join("disks")
            .join(zone)
            .join(format!("{label}.ext4"))
    }

    /// A folder for what backups and restores need meanwhile; only root looks into it.
    pub(crate) fn work(&self, site: &str) -> io::Result<PathBuf> {
        let work = self.state.join("work");
        private(&work)?;
        let folder = work.join(site);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// What one at a time holds to make a site's folder ready.
    fn turn(&self, site: &str) -> Arc<Mutex<()>> {
        let preparing = self.preparing.lock();
        let mut preparing = preparing.unwrap_or_else(PoisonError::into_inner);
        // Those nobody holds any more.
        preparing.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(preparing.entry(site.to_owned()).or_default())
    }

    /// Makes a site's folder ready, with room for `quota` octets. Only a site at rest gets another disk
    /// than it has: a running container holds on to the one it started with. Blocks while another
    /// does the same for this site.
    pub(crate) fn prepare(
        &self,
        site: &str,
        uid: u32,
        quota: Option<u64>,
        at_rest: bool,
    ) -> io::Result<()> {
        let turn = self.turn(site);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (folder, image) = (self.site(site), self.image(site));
        fs::create_dir_all(&folder)?;
        let quota = quota.filter(|_| at_rest);
        if quota.is_some() || image.exists() {
            private(&self.state.join("disks"))?;
            fs::create_dir_all(image.parent().unwrap_or(&self.state))?;
            disk::mount(&image, &folder, quota)?;
        }
        // Nobody lists them, and each site's own folders are closed to the others.
        for outer in [&self.state.join("sites"), &folder] {
            fs::set_permissions(outer, fs::Permissions::from_mode(0o711))?;
        }
        for own in [self.files(site), self.scratch(site)] {
            if !own.exists() {
                fs::create_dir(&own)?;
            }
            let meta = fs::symlink_metadata(&own)?;
            if !meta.is_dir() {
                return Err(io::Error::other(format!("{} is no folder", own.display())));
            }
            if meta.uid() != uid {
                chown(&own, Some(uid), Some(uid))?;
                fs::set_permissions(&own, fs::Permissions::from_mode(0o750))?;
            }
        }
        Ok(())
    }

    /// Puts a removed site's folder into the bin, with a dump of its database; where, if there was
    /// anything.
    pub(crate) fn discard(&self, site: &str, now: SystemTime) -> io::Result<Option<PathBuf>> {
        let work = self.work(site)?;
        let dump = work.join(backup::DUMP);
        let files = self.site(site).exists() || self.image(site).exists();
        let place = if files {
            disk::unmount(&self.site(site))?;
            Some(self.entry(site, now)?)
        } else if dump.exists() {
            // Its files went before, when it could not be dumped.
            Some(match self.discarded(site).pop() {
                Some(last) => last,
                None => self.entry(site, now)?,
            })
        } else {
            None
        };
        if let Some(place) = &place {
            // First, for it is not made again once the files are gone.
            if dump.exists() {
                fs::rename(&dump, place.join(backup::DUMP))?;
            }
            self.put_aside(site, place)?;
            // Its age in the bin, not that of its newest file.
            fs::File::open(place)?.set_modified(now)?;
        }
        fs::remove_dir_all(work)?;
        Ok(place)
    }

    /// A new entry of the bin.
    fn entry(&self, site: &str, now: SystemTime) -> io::Result<PathBuf> {
        let bin = self.state.join("bin");
        private(&bin)?;
        let stamp = OffsetDateTime::from(now)
            .format(STAMP)
            .map_err(io::Error::other)?;
        let mut place = bin.join(format!("{site}@{stamp}"));
        for again in 1.. {
            if !place.exists() {
                break;
            }
            place = bin.join(format!("{site}@{stamp}.{again}"));
        }
        fs::create_dir(&place)?;
        Ok(place)
    }

    /// Moves a site's folder and disk to an entry of the bin, or a folder like one.
    pub(crate) fn put_aside(&self, site: &str, place: &Path) -> io::Result<()> {
        let (folder, image) = (self.site(site), self.image(site));
        disk::unmount(&folder)?;
        // First what a new site of this name would find.
        for (from, to) in [(&image, DISK), (&folder, SITE)] {
            if !from.exists() {
                continue;
            }
            let to = place.join(to);
            // What is there may be the only one of its kind.
            if to.exists() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{} is there already", to.display()),
                ));
            }
            fs::rename(from, to)?;
        }
        for emptied in [folder.parent(), image.parent()].into_iter().flatten() {
            // Goes with the last site of its zone, and only then.
            fs::remove_dir(emptied).unwrap_or_default();
        }
        Ok(())
    }

    /// Moves an entry's folder and disk to a site that has none; the dump in it stays there.
    pub(crate) fn put_back(&self, site: &str, from: &Path) -> io::Result<()> {
        for (name, to) in [(SITE, self.site(site)), (DISK, self.image(site))] {
            let from = from.join(name);
            if from.exists() {
                fs::create_dir_all(to.parent().unwrap_or(&self.state))?;
                fs::rename(from, to)?;
            }
        }
        Ok(())
    }

    /// Notes in an entry of the bin that its site is being given other files, or that this is over.
    pub(crate) fn note_restore(place: &Path, under_way: bool) -> io::Result<()> {
        let note = place.join(UNFINISHED);
        if under_way {
            fs::File::create(note)?.sync_all()
        } else {
            fs::remove_file(note)
        }
    }

    /// Removes what backups and restores that were cut short have left, and tells of restores that were.
    pub(crate) fn tidy(&self) -> io::Result<()> {
        for place in fs::read_dir(self.state.join("bin")).into_iter().flatten() {
            let place = place?.path();
            if !place.join(UNFINISHED).exists() {
                continue;
            }
            let name = place.file_name().unwrap_or_default().to_string_lossy();
            let site = name.split_once('@').map_or(&*name, |(site, _)| site);
            tracing::error!(
                site,
                "a restore was cut short: what the site had before is in the bin, bring it back with `nuage site restore {site} --bin`"
            );
            Self::note_restore(&place, false)?;
        }
        let entries = match fs::read_dir(self.state.join("work")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            backup::remove(&entry?.path())?;
        }
        Ok(())
    }

    /// What a site left in the bin, the latest last.
    pub(crate) fn discarded(&self, site: &str) -> Vec<PathBuf> {
        let prefix = format!("{site}@");
        let entries = fs::read_dir(self.state.join("bin"));
        let mut found: Vec<PathBuf> = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| name.starts_with(&prefix))
            })
            .collect();
        found.sort();
        found
    }

    /// Empties the bin of what has been there long enough.
    pub(crate) fn empty_bin(&self, now: SystemTime) {
        let Ok(entries) = fs::read_dir(self.state.join("bin")) else {
            return;
        };
        for entry in entries.flatten() {
            let age = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .ok()
                .and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > KEPT) {
                let path = entry.path();
                match fs::remove_dir_all(&path) {
                    Ok(()) => {
                        tracing::info!(path = %path.display(), "the bin kept this for 30 days; it is gone now");
                    }
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "can't empty the bin");
                    }
                }
            }
        }
    }
}

fn split(site: &str) -> (&str, &str) {
    site.split_once('.').unwrap_or((site, ""))
}

/// A folder only its owner looks into.
fn private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_cut_short_leaves_what_was_there_in_the_bin() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::new(state.path());
        let uid = rustix::process::getuid().as_raw();
        folders.prepare("a.w.example", uid, None, true).unwrap();
        let now = SystemTime::now();
        let before = folders.discard("a.w.example", now).unwrap().unwrap();
        Folders::note_restore(&before, true).unwrap();
        folders.tidy().unwrap();
        assert!(before.join(SITE).exists() && !before.join(UNFINISHED).exists());
        // Nothing in the bin is ever overwritten.
        folders.prepare("a.w.example", uid, None, true).unwrap();
        assert!(folders.put_aside("a.w.example", &before).is_err());
        assert!(folders.site("a.w.example").exists());
    }

    #[test]
    fn a_site_is_made_ready_by_one_at_a_time() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::new(state.path());
        let uid = rustix::process::getuid().as_raw();
        let turn = folders.turn("a.w.example");
        let held = turn.lock().unwrap();
        let (others, (done, is_done)) = (folders.clone(), std::sync::mpsc::channel());
        let another = std::thread::spawn(move || {
            others.prepare("b.w.example", uid, None, true).unwrap();
            done.send("b").unwrap();
            others.prepare("a.w.example", uid, None, true).unwrap();
            done.send("a").unwrap();
        });
        let patience = Duration::from_secs(10);
        assert_eq!(is_done.recv_timeout(patience), Ok("b"), "nobody is there");
        assert!(is_done.recv_timeout(Duration::from_millis(100)).is_err());
        assert!(!folders.site("a.w.example").exists(), "somebody is there");
        drop(held);
        assert_eq!(is_done.recv_timeout(patience), Ok("a"));
        another.join().unwrap();
        drop(turn);
        folders.turn("c.w.example");
        let kept = folders.preparing.lock().unwrap().len();
        assert_eq!(kept, 1, "what nobody holds is forgotten");
    }

    #[test]
    fn the_bin_keeps_a_site_for_thirty_days() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::new(state.path());
        let files = folders.files("a.w.example");
        fs::create_dir_all(&files).unwrap();
        fs::File::create(files.join("index.php")).unwrap();
        let now = SystemTime::now();
        let kept = folders.discard("a.w.example", now).unwrap().unwrap();
        assert!(folders.discard("a.w.example", now).unwrap().is_none());
        assert!(!state.path().join("sites/w.example").exists());
        assert_eq!(folders.discarded("a.w.example"), [kept.as_path()]);
        assert!(kept.join("site/files/index.php").exists());
        assert!(folders.discarded("b.w.example").is_empty());
        folders.put_back("a.w.example", &kept).unwrap();
        assert!(files.join("index.php").exists());
        folders.put_aside("a.w.example", &kept).unwrap();
        assert!(kept.join("site/files/index.php").exists());

        folders.empty_bin(now + KEPT - Duration::from_secs(60));
        assert_eq!(folders.discarded("a.w.example").len(), 1);
        folders.empty_bin(now + KEPT + Duration::from_secs(60));
        assert!(folders.discarded("a.w.example").is_empty());
    }

    #[test]
    fn a_dump_that_comes_late_goes_to_its_files() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::new(state.path());
        fs::create_dir_all(folders.files("a.w.example")).unwrap();
        let now = SystemTime::now();
        let kept = folders.discard("a.w.example", now).unwrap().unwrap();
        let dump = folders.work("a.w.example").unwrap().join(backup::DUMP);
        fs::File::create(dump).unwrap();
        let later = now + Duration::from_secs(60);
        assert_eq!(
            folders.discard("a.w.example", later).unwrap().as_deref(),
            Some(&*kept)
        );
        assert!(kept.join("site/files").exists() && kept.join(backup::DUMP).exists());
        assert_eq!(folders.discarded("a.w.example").len(), 1);
    }

    #[test]
    fn what_was_cut_short_is_gone_at_the_next_start() {
        let state = tempfile::tempdir().unwrap();
        let folders = Folders::new(state.path());
        folders.tidy().unwrap();
        let half = folders.work("a.w.example@restore").unwrap();
        fs::create_dir_all(half.join("site/files")).unwrap();
        folders.tidy().unwrap();
        assert!(!half.exists());
    }
}
