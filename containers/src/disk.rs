//! A disk of a site's own: an ext4 image beside its files, mounted on them. The image is sparse: it
//! takes as much of the real disk as the site has written, and the file system in it is as large as
//! the quota, so that a site that fills it fills nobody else's.
//!
//! Images stay mounted while their site is declared: files can be put in at any time, and waking
//! costs nothing here.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Makes sure an image is there, at least of this size, and mounted; an image that is there stays in
/// use when there is no quota any more.
pub(crate) fn mount(image: &Path, on: &Path, quota: Option<u64>) -> io::Result<()> {
    let size = fs::metadata(image).map(|meta| meta.len()).ok();
    match (size, quota) {
        (None, Some(quota)) => make(image, on, quota)?,
        // Never smaller: what is written stays. Not growing now is no reason to refuse the site.
        (Some(size), Some(quota)) if size < quota => {
            if let Err(error) = grow(image, on, quota) {
                tracing::warn!(image = %image.display(), %error, "a site's disk can't grow while it is in use; it does at its next start");
            }
        }
        _ => {}
    }
    if is_mounted(on)? {
        return Ok(());
    }
    attach(image, on)
}

/// Takes the image off its folder; fine when none is there.
pub(crate) fn unmount(folder: &Path) -> io::Result<()> {
    if folder.exists() && is_mounted(folder)? {
        // -d frees the loop device with the last use of it.
        run(Command::new("umount").arg("-d").arg(folder))?;
    }
    Ok(())
}

/// Octets in all, and octets free to the site.
pub(crate) fn room(folder: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

fn make(image: &Path, on: &Path, quota: u64) -> io::Result<()> {
    let beside = image.with_extension("new");
    let file = fs::File::create(&beside)?;
    // Whoever reads the image reads the site's secrets.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.set_len(quota)?;
    drop(file);
    // No block is kept for root: the quota is the site's. A small journal makes a small empty image.
    run(Command::new("mkfs.ext4")
        .args([
            "-q",
            "-F",
            "-m",
            "0",
            "-i",
            "8192",
            "-J",
            "size=4",
            "-E",
            "lazy_itable_init=1",
        ])
        .arg(&beside))?;
    // Files from before there was a quota move in.
    if fs::read_dir(on)?.next().is_some() {
        let within = image.with_extension("mnt");
        fs::create_dir_all(&within)?;
        attach(&beside, &within)?;
        let moved = run(Command::new("cp")
            .arg("-a")
            .arg("--")
            .arg(on.join("."))
            .arg(&within));
        let unmounted = unmount(&within);
        fs::remove_dir(&within).unwrap_or_default();
        moved.and(unmounted)?;
        // In place before the originals go.
        put(&beside, image)?;
        // Below the mount they would only take room.
        for entry in fs::read_dir(on)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        return Ok(());
    }
    put(&beside, image)
}

/// Puts an image in its place, whole even after a power cut: one that is there is never made anew.
fn put(beside: &Path, image: &Path) -> io::Result<()> {
    fs::File::open(beside)?.sync_all()?;
    fs::rename(beside, image)?;
    fs::File::open(image.parent().unwrap_or(image))?.sync_all()
}

/// Grows the file system first where it is not in use, else in place, which takes more rights.
fn grow(image: &Path, on: &Path, quota: u64) -> io::Result<()> {
    let in_use = unmount(on).is_err();
    let before = fs::metadata(image)?.len();
    let file = fs::OpenOptions::new().write(true).open(image)?;
    file.set_len(quota)?;
    let grown = match device_of(image)?.filter(|_| in_use) {
        Some(device) => run(Command::new("losetup").arg("-c").arg(&device))
            .and_then(|()| run(Command::new("resize2fs").arg(&device))),
        // Exit code 1: what was wrong is mended (e2fsck(8)).
        None => run_to(
            &[0, 1],
            Command::new("e2fsck").args(["-p", "-f"]).arg(image),
        )
        .and_then(|()| run(Command::new("resize2fs").arg(image))),
    };
    grown.inspect_err(|_| {
        // Its size tells the next time that there is something to do.
        file.set_len(before).unwrap_or_default();
    })
}

fn attach(image: &Path, on: &Path) -> io::Result<()> {
    run(Command::new("mount")
        .args(["-t", "ext4", "-o", "loop,nosuid,nodev,noatime,discard"])
        .arg(image)
        .arg(on))
}

/// The loop device an image is on.
fn device_of(image: &Path) -> io::Result<Option<PathBuf>> {
    let output = Command::new("losetup").arg("-j").arg(image).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split(':')
        .next()
        .filter(|name| name.starts_with("/dev/"))
        .map(PathBuf::from))
}

/// Whether a file system begins at this folder.
fn is_mounted(folder: &Path) -> io::Result<bool> {
    let parent = folder.parent().unwrap_or(folder);
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}

fn run(command: &mut Command) -> io::Result<()> {
    run_to(&[0], command)
}

/// Runs a program to one of these exit codes.
fn run_to(good: &[i32], command: &mut Command) -> io::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            io::Error::new(error.kind(), format!("there is no {program}: install it with `apt-get install e2fsprogs mount`, or set `disk = \"none\"`"))
        } else {
            error
        }
    })?;
    if output
        .status
        .code()
        .is_some_and(|code| good.contains(&code))
    {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{program}: {}",
        said.trim().lines().last().unwrap_or("failed")
    )))
}
