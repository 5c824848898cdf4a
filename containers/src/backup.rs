//! A site in one file: `tar.zst` with its files under `files/` and its database as `database.sql`.
//!
//! The site is kept frozen while its files are read, so that the backup is of one moment; the stream
//! goes out as it is read, and nothing of it is kept here. A restore is unpacked beside the site, onto a
//! disk of its own where there is a quota, and put in its place whole; what was there goes to the bin.

use std::{
    cell::Cell,
    collections::{HashMap, hash_map::Entry},
    fs,
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    disk,
    files::{DISK, SITE},
};

/// The database's part of a backup.
pub(crate) const DUMP: &str = "database.sql";
/// The files' part.
const FILES: &str = "files";
/// Pieces on their way to who reads the backup.
pub(crate) const PIECES: usize = 16;
const PIECE: usize = 64 << 10;
/// Fast and small enough: what zstd itself starts from.
const LEVEL: i32 = 3;
/// The largest window a backup may ask the decoder to keep, as a power of two.
const MOST_WINDOW: u32 = 25;
/// The most octets that may come before an entry: its headers, with long names and the map of a file
/// with holes. They are read into memory.
const MOST_HEADERS: u64 = 4 << 20;
/// The most files and folders in a backup; each takes an inode of the host's where there is no quota.
const MOST_ENTRIES: u64 = 10_000_000;
/// How many times a site's disk its database's dump may fill: rows take more room as text.
const DUMP_PER_DISK: u64 = 4;

/// Writes into a channel, for whoever streams it on.
pub(crate) struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Pieces {
    pub(crate) fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self {
            sender,
            piece: Vec::with_capacity(PIECE),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| {
            io::Error::new(
                io::ErrorKind::BrokenPipe,
                "whoever read the backup has left",
            )
        })
    }
}

impl Write for Pieces {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(octets);
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.send()
    }
}

/// Reads what arrives in a channel.
pub(crate) struct Arriving {
    pub(crate) receiver: mpsc::Receiver<io::Result<Bytes>>,
    pub(crate) piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let length = to.len().min(self.piece.len());
        let part = self.piece.split_to(length);
        to[..length].copy_from_slice(&part);
        Ok(length)
    }
}

/// Writes a site's files, and its database dump where there is one.
pub(crate) fn write(files: &Path, dump: Option<&Path>, to: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(zstd::Encoder::new(to, LEVEL)?);
    archive.follow_symlinks(false);
    // Names and modes; whose files they are is for the machine they are restored on.
    if let Some(dump) = dump {
        // Holes in it are written out: they are octets of it.
        archive.sparse(false);
        archive.append_path_with_name(dump, DUMP)?;
        archive.sparse(true);
    }
    let mut linked = HashMap::new();
    if files.exists() {
        archive.append_dir(FILES, files)?;
        let mut left = vec![files.to_owned()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let within = Path::new(FILES).join(path.strip_prefix(files).unwrap_or(&path));
                let meta = fs::symlink_metadata(&path)?;
                if meta.is_dir() {
                    archive.append_dir(within, &path)?;
                    left.push(path);
                } else if let Some(first) = earlier(&mut linked, &meta, &within) {
                    let mut header = tar::Header::new_gnu();
                    header.set_metadata(&meta);
                    header.set_entry_type(tar::EntryType::Link);
                    header.set_size(0);
                    archive.append_link(&mut header, &within, first)?;
                } else if meta.is_file() || meta.is_symlink() {
                    archive.append_path_with_name(&path, within)?;
                }
                // Sockets and pipes are of a running program, and nothing without it.
            }
        }
    }
    let mut encoder = archive.into_inner()?;
    encoder.flush()?;
    encoder.finish()?.flush()
}

/// Another name of this file that is in the backup already; else notes this one.
fn earlier(
    linked: &mut HashMap<(u64, u64), PathBuf>,
    meta: &fs::Metadata,
    within: &Path,
) -> Option<PathBuf> {
    if !meta.is_file() || meta.nlink() < 2 {
        return None;
    }
    match linked.entry((meta.dev(), meta.ino())) {
        Entry::Occupied(first) => Some(first.get().clone()),
        Entry::Vacant(place) => {
            place.insert(within.to_owned());
            None
        }
    }
}

/// Unpacks a backup into a new folder of the form the bin's have, onto a new disk where there is a
/// quota: nothing of the site is touched yet.
///
/// # Errors
/// It is not a backup, or does not fit; the new folder is gone again.
pub(crate) fn unpack(folder: &Path, quota: Option<u64>, from: impl Read) -> io::Result<()> {
    remove(folder)?;
    let (site, image) = (folder.join(SITE), folder.join(DISK));
    fs::create_dir_all(&site)?;
    let unpacked = (|| {
        if quota.is_some() {
            disk::mount(&image, &site, quota)?;
        }
        unpack_into(folder, quota, from)?;
        disk::unmount(&site)?;
        if quota.is_some() {
            // Whole before it takes another's place.
            fs::File::open(&image)?.sync_all()?;
        }
        Ok(())
    })();
    unpacked.map_err(|error: io::Error| {
        // What is left is of no use to anybody.
        remove(folder).unwrap_or_default();
        if quota.is_some() && error.kind() == io::ErrorKind::StorageFull {
            does_not_fit()
        } else {
            error
        }
    })
}

/// Removes what was unpacked, or half of it.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    disk::unmount(&folder.join(SITE))?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unpack_into(folder: &Path, quota: Option<u64>, from: impl Read) -> io::Result<()> {
    let mut decoder = zstd::Decoder::new(from)?;
    decoder.window_log_max(MOST_WINDOW)?;
    let left = Rc::new(Cell::new(u64::MAX));
    let mut archive = tar::Archive::new(Bounded {
        inner: decoder,
        left: Rc::clone(&left),
    });
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    let root = folder.join(SITE);
    let mut entries = archive.entries()?;
    let mut seen = 0;
    loop {
        left.set(MOST_HEADERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry?;
        left.set(u64::MAX);
        seen += 1;
        if seen > MOST_ENTRIES {
            return Err(invalid("the backup holds too many files".to_owned()));
        }
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        // Nothing else of that name: a link would lead to somebody else's.
        if path == Path::new(DUMP) && kind.is_file() {
            let most = quota.map_or(u64::MAX, |quota| quota.saturating_mul(DUMP_PER_DISK));
            if entry.size() > most {
                return Err(does_not_fit());
            }
            io::copy(&mut entry, &mut fs::File::create(folder.join(DUMP))?)?;
            continue;
        }
        let ours = path.components().next() == Some(Component::Normal(FILES.as_ref()));
        let plain = kind.is_file() || kind.is_gnu_sparse() || kind.is_dir() || kind.is_symlink();
        let again = kind.is_hard_link()
            && entry
                .link_name()?
                .is_some_and(|target| is_unpacked(&root, &target));
        if !ours || !(plain || again) {
            return Err(invalid(format!(
                "{} has no place in a site's backup: it holds {FILES}/ and {DUMP}",
                path.display()
            )));
        }
        // Refuses what would land outside the folder.
        if !entry.unpack_in(&root)? {
            return Err(invalid(format!("{} leads out of the site", path.display())));
        }
    }
    if seen == 0 {
        return Err(invalid("the backup is empty".to_owned()));
    }
    Ok(())
}

/// Whether this is a file unpacked before, with no link on the way to it.
fn is_unpacked(root: &Path, target: &Path) -> bool {
    let mut path = root.to_owned();
    let mut parts = target.components().peekable();
    parts.peek() == Some(&Component::Normal(FILES.as_ref()))
        && parts.all(|part| {
            path.push(part);
            matches!(part, Component::Normal(_))
                && fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_symlink())
        })
        && path.is_file()
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn does_not_fit() -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        "the backup does not fit: it holds more than the site's disk does",
    )
}

/// Reads no more than is left.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(invalid(
                "the backup has too long a name or map of holes".to_owned(),
            ));
        }
        let most = to.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut to[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

/// Makes everything below a folder one user's, links themselves and not what they point at.
pub(crate) fn give(folder: &Path, uid: u32) -> io::Result<()> {
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        std::os::unix::fs::lchown(&path, Some(uid), Some(uid))?;
        if fs::symlink_metadata(&path)?.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
        for (name, text) in entries {
            let mut header = tar::Header::new_gnu();
            // By hand: the builder itself refuses the names an attacker writes.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            archive.append(&header, text.as_bytes()).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn what_is_written_comes_back() {
        let site = tempfile::tempdir().unwrap();
        let files = site.path().join("files");
        fs::create_dir_all(files.join("deep")).unwrap();
        fs::copy("Cargo.toml", files.join("deep/page")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", files.join("link")).unwrap();
        let dump = site.path().join("dump");
        fs::copy("Cargo.toml", &dump).unwrap();
        let mut backup = Vec::new();
        write(&files, Some(&dump), &mut backup).unwrap();
        let unpacked = site.path().join("unpacked");
        unpack(&unpacked, None, &*backup).unwrap();
        for name in ["site/files/deep/page", DUMP] {
            assert_eq!(
                fs::read(unpacked.join(name)).unwrap(),
                fs::read("Cargo.toml").unwrap()
            );
        }
        let link = fs::read_link(unpacked.join("site/files/link")).unwrap();
        assert_eq!(
            link,
            Path::new("/etc/passwd"),
            "kept as a link, never followed"
        );
    }

    #[test]
    fn holes_and_second_names_take_no_room() {
        use std::os::unix::fs::FileExt;
        let site = tempfile::tempdir().unwrap();
        let files = site.path().join("files");
        fs::create_dir_all(files.join("deep")).unwrap();
        let holes = fs::File::create(files.join("holes")).unwrap();
        // More pieces than fit one header.
        for piece in 0..40 {
            holes.write_all_at(b"data", piece << 20).unwrap();
        }
        holes.set_len(1 << 30).unwrap();
        // Long enough to need a header of its own.
        let first = files.join("x".repeat(150));
        fs::File::create(&first)
            .unwrap()
            .write_all(&noise(1 << 20))
            .unwrap();
        fs::hard_link(&first, files.join("second")).unwrap();
        fs::hard_link(&first, files.join("deep/third")).unwrap();
        let mut backup = Vec::new();
        write(&files, None, &mut backup).unwrap();
        assert!(backup.len() < 2 << 20, "{}", backup.len());
        let unpacked = site.path().join("unpacked");
        unpack(&unpacked, None, &*backup).unwrap();
        let back = unpacked.join("site/files");
        let meta = fs::metadata(back.join("holes")).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 16 << 20, "{}", meta.blocks());
        let mut piece = [0; 8];
        let holes = fs::File::open(back.join("holes")).unwrap();
        holes.read_exact_at(&mut piece, 39 << 20).unwrap();
        assert_eq!(&piece, b"data\0\0\0\0");
        let of = |name: &str| fs::metadata(back.join(name)).unwrap();
        assert_eq!(of("second").ino(), of("deep/third").ino());
        assert_eq!(of("second").nlink(), 3);
        assert_eq!(of("second").len(), 1 << 20);
    }

    #[test]
    fn a_hostile_backup_lands_nowhere() {
        let site = tempfile::tempdir().unwrap();
        let unpacked = site.path().join("unpacked");
        for name in ["../evil", "files/../../evil", "/etc/evil", "other/file"] {
            let backup = archive(&[("files/good", "x"), (name, "evil")]);
            assert!(unpack(&unpacked, None, &*backup).is_err(), "{name}");
            assert!(!unpacked.exists(), "{name}");
            assert!(!site.path().join("evil").exists() && !Path::new("/etc/evil").exists());
        }
        assert!(unpack(&unpacked, None, &b"no backup at all"[..]).is_err());
        assert!(unpack(&unpacked, None, &*archive(&[])).is_err());
    }

    #[test]
    fn a_second_name_is_of_a_file_of_the_same_backup() {
        let site = tempfile::tempdir().unwrap();
        let unpacked = site.path().join("unpacked");
        fs::copy("Cargo.toml", site.path().join("secret")).unwrap();
        let linking = |target: &Path| {
            let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
            let mut link = |kind, name: &str, target: &Path| {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(kind);
                header.set_size(0);
                header.set_mode(0o755);
                archive.append_link(&mut header, name, target).unwrap();
            };
            link(tar::EntryType::Symlink, "files/out", site.path());
            link(tar::EntryType::Symlink, "files/alias", Path::new("good"));
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o644);
            archive
                .append_data(&mut header, "files/good", &b"good"[..])
                .unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Link);
            header.set_size(0);
            header.set_mode(0o644);
            archive
                .append_link(&mut header, "files/again", target)
                .unwrap();
            archive.into_inner().unwrap().finish().unwrap()
        };
        unpack(&unpacked, None, &*linking(Path::new("files/good"))).unwrap();
        for target in [
            site.path().join("secret").as_path(),
            Path::new("files/out/secret"),
            Path::new("files/alias"),
            Path::new("files/missing"),
            Path::new("../../secret"),
            Path::new(DUMP),
            Path::new("files"),
        ] {
            let refused = unpack(&unpacked, None, &*linking(target));
            assert!(refused.is_err(), "{}", target.display());
        }
    }

    #[test]
    fn what_comes_before_an_entry_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let unpacked = folder.path().join("unpacked");
        let refused = |kind: u8, header: &dyn Fn(&mut tar::Header), octets: Vec<u8>| {
            let mut archive = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
            let mut long = tar::Header::new_gnu();
            long.set_path("files/x").unwrap();
            long.set_mode(0o644);
            long.set_size(octets.len() as u64);
            long.set_entry_type(tar::EntryType::new(kind));
            header(&mut long);
            long.set_cksum();
            archive.append(&long, &*octets).unwrap();
            let backup = archive.into_inner().unwrap().finish().unwrap();
            assert!(backup.len() < 1 << 20, "it is small: {}", backup.len());
            unpack(&unpacked, None, &*backup).unwrap_err().to_string()
        };
        let long = 64 << 20;
        for kind in [b'L', b'K', b'x'] {
            let why = refused(kind, &|_| {}, vec![b'x'; long]);
            assert!(why.contains("too long a name"), "{why}");
        }
        // A map of holes without end: blocks that each say that another follows.
        let mut block = vec![0; 512];
        block[504] = 1;
        let why = refused(
            b'S',
            &|header| {
                header.set_size(0);
                header.as_gnu_mut().unwrap().set_is_extended(true);
            },
            block.repeat(long / 512),
        );
        assert!(why.contains("too long a name"), "{why}");
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }
}
