//! A site in one file: `tar.zst` with its files under `files/` and its database as `database.sql`.
//!
//! The site is kept frozen while its files are read, so that the backup is of one moment; the stream
//! goes out as it is read, and nothing of it is kept here. A restore is unpacked beside the site first
//! and put in its place whole; what was there goes to the bin.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::files::Folders;

/// The database's part of a backup.
pub(crate) const DUMP: &str = "database.sql";
/// The files' part.
const FILES: &str = "files";
/// Pieces on their way to who reads the backup.
pub(crate) const PIECES: usize = 16;
const PIECE: usize = 64 << 10;
/// Fast and small enough: what zstd itself starts from.
const LEVEL: i32 = 3;

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
        archive.append_path_with_name(dump, DUMP)?;
    }
    if files.exists() {
        archive.append_dir(FILES, files)?;
        let mut left = vec![files.to_owned()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let within = Path::new(FILES).join(path.strip_prefix(files).unwrap_or(&path));
                let kind = fs::symlink_metadata(&path)?.file_type();
                if kind.is_dir() {
                    archive.append_dir(within, &path)?;
                    left.push(path);
                } else if kind.is_file() || kind.is_symlink() {
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

/// Unpacks a backup into a new folder: nothing of the site is touched yet.
///
/// # Errors
/// It is not a backup, or does not fit; the new folder is gone again.
pub(crate) fn unpack(
    work: &Path,
    uid: u32,
    quota: Option<u64>,
    from: impl Read,
) -> io::Result<PathBuf> {
    let folder = work.join("restore");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(folder.join(FILES))?;
    unpack_into(&folder, uid, quota, from).inspect_err(|_| {
        // What is left is of no use to anybody.
        fs::remove_dir_all(&folder).unwrap_or_default();
    })?;
    Ok(folder)
}

fn unpack_into(folder: &Path, uid: u32, quota: Option<u64>, from: impl Read) -> io::Result<()> {
    let mut room = quota.unwrap_or(u64::MAX);
    let mut archive = tar::Archive::new(zstd::Decoder::new(from)?);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(false);
    let mut seen = false;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        let plain = kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link();
        let ours = if path == Path::new(DUMP) {
            // Nothing else: a link of that name would lead to somebody else's.
            kind.is_file()
        } else {
            plain && path.components().next() == Some(Component::Normal(FILES.as_ref()))
        };
        if !ours {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} has no place in a site's backup: it holds {FILES}/ and {DUMP}",
                    path.display()
                ),
            ));
        }
        room = room.checked_sub(entry.size()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the backup holds more than the site's disk does",
            )
        })?;
        seen = true;
        // Refuses what would land outside the folder.
        if !entry.unpack_in(folder)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} leads out of the site", path.display()),
            ));
        }
    }
    if !seen {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the backup is empty",
        ));
    }
    give(&folder.join(FILES), uid)
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

/// Puts unpacked files in the place of a site's own; those go to the bin. The site must be stopped.
pub(crate) fn replace(
    folders: &Folders,
    site: &str,
    uid: u32,
    quota: Option<u64>,
    unpacked: &Path,
) -> io::Result<()> {
    // Out of the folder that is about to be put aside.
    let aside = folders.work(&format!("{site}.restore"))?;
    fs::remove_dir_all(&aside)?;
    fs::rename(unpacked, &aside)?;
    folders.discard(site, SystemTime::now())?;
    folders.prepare(site, uid, quota, true)?;
    let moved = std::process::Command::new("cp")
        .args(["-a", "--"])
        .arg(aside.join(FILES).join("."))
        .arg(folders.files(site))
        .output()?;
    if !moved.status.success() {
        let said = String::from_utf8_lossy(&moved.stderr);
        return Err(io::Error::other(format!(
            "the backup does not fit ({}); what was there is in the bin: `nuage site restore {site} --bin`",
            said.trim().lines().last().unwrap_or_default()
        )));
    }
    let dump = aside.join(DUMP);
    if dump.exists() {
        fs::rename(&dump, folders.work(site)?.join(DUMP))?;
    }
    fs::remove_dir_all(&aside)
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

    fn uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn what_is_written_comes_back() {
        let site = tempfile::tempdir().unwrap();
        let files = site.path().join("files");
        fs::create_dir_all(files.join("deep")).unwrap();
        fs::copy("Cargo.toml", files.join("deep/page")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", files.join("link")).unwrap();
        let mut backup = Vec::new();
        write(&files, None, &mut backup).unwrap();
        let unpacked = unpack(site.path(), uid(), None, &*backup).unwrap();
        assert_eq!(
            fs::read(unpacked.join("files/deep/page")).unwrap(),
            fs::read("Cargo.toml").unwrap()
        );
        let link = fs::read_link(unpacked.join("files/link")).unwrap();
        assert_eq!(
            link,
            Path::new("/etc/passwd"),
            "kept as a link, never followed"
        );
    }

    #[test]
    fn a_hostile_backup_lands_nowhere() {
        let site = tempfile::tempdir().unwrap();
        for name in ["../evil", "files/../../evil", "/etc/evil", "other/file"] {
            let backup = archive(&[("files/good", "x"), (name, "evil")]);
            assert!(
                unpack(site.path(), uid(), None, &*backup).is_err(),
                "{name}"
            );
            assert!(!site.path().join("restore").exists(), "{name}");
            assert!(!site.path().join("evil").exists() && !Path::new("/etc/evil").exists());
        }
        assert!(unpack(site.path(), uid(), None, &b"no backup at all"[..]).is_err());
        assert!(unpack(site.path(), uid(), None, &*archive(&[])).is_err());
    }
}
