//! Writing a file so that a crash at any instant leaves either the old content or the new.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::Path,
};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner alone (mode 0600): keys.
    Owner,
    /// Everybody (mode 0644).
    Everybody,
}

/// Replaces `path` by `content`: temporary file in the same folder, fsync, rename, fsync of the
/// folder. An existing file keeps its owner, group and mode; a symbolic link stays one, and what it
/// points at is replaced.
///
/// # Errors
/// The first step that fails; the old content is then still there.
pub fn replace(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let path = &*real;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.new", std::process::id()));
    let temporary = folder.join(hidden);

    let written = write_new(&temporary, content, access).and_then(|()| {
        if let Ok(existing) = fs::metadata(path) {
            // Only root may give a file away; others keep what they can.
            chown(&temporary, Some(existing.uid()), Some(existing.gid())).unwrap_or_default();
            fs::set_permissions(&temporary, existing.permissions())?;
        }
        fs::rename(&temporary, path)
    });
    if let Err(error) = written {
        // The old file stands; what is left of the new one is only in the way.
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

fn write_new(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let mode = match access {
        Access::Owner => 0o600,
        Access::Everybody => 0o644,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_replaced_file_has_the_new_content_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        replace(&path, b"one", Access::Owner).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        replace(&path, b"two", Access::Everybody).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600,
            "an existing file keeps its mode"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_stays_a_link_and_an_owner_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        replace(&file, b"one", Access::Everybody).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // Root alone can try this part.
        let given = chown(&file, Some(65_534), Some(65_534)).is_ok();
        replace(&link, b"two", Access::Everybody).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert!(!given || fs::metadata(&file).unwrap().uid() == 65_534);
    }

    #[test]
    fn a_failure_leaves_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("file");
        assert!(replace(&path, b"x", Access::Everybody).is_err());
    }
}
