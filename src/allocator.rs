//! How memory goes back to the system.
//!
//! glibc gives large blocks mappings of their own, which end with the block; but each time one ends, it
//! takes blocks of that size for ordinary ones from then on, and what a large zone file took to be read
//! stays with the process: 13 MiB of 53 at 100,000 sites. A fixed threshold keeps it from learning that.
//! It can only be set for a process that starts, so `nuage serve` starts itself once more, as the same
//! process, before it does anything else.

use std::{env, io, os::unix::process::CommandExt, process::Command};

const TUNABLES: &str = "GLIBC_TUNABLES";
const TRIED: &str = "NUAGE_ALLOCATOR_FIXED";
/// The threshold glibc starts with, kept.
const FIXED: &str = "glibc.malloc.mmap_threshold=131072";

/// Starts this program anew with the threshold fixed, unless that or another choice is made already.
///
/// # Errors
/// It can't be started: the caller goes on without.
pub(crate) fn fix_threshold() -> io::Result<()> {
    // A privileged process may have its tunables taken away: ours tells that this was tried.
    if env::var_os(TUNABLES).is_some() || env::var_os(TRIED).is_some() {
        return Ok(());
    }
    let program = env::current_exe()?;
    // Returns only when it fails.
    Err(Command::new(program)
        .args(env::args_os().skip(1))
        .env(TUNABLES, FIXED)
        .env(TRIED, "1")
        .exec())
}
