//! How much memory sites take, read from their cgroups, and how much there is.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What an awake site costs outside its own cgroup: the engine's shim (2.4 MiB) and its share of the
/// engine. Measured as a whole: from 203 to 437 awake sites everything together grew by 7.2 MiB each,
/// file pages aside, of which their cgroups held 4.3.
pub(crate) const OVERHEAD: u64 = 2_870_000;

/// Memory of this machine, or of the cgroup we are in where that is less.
pub(crate) fn of_the_host() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .map_or(u64::MAX, |kib: u64| kib * 1024);
    let limit = cgroup_of("self").and_then(|folder| {
        ["memory.limit_in_bytes", "memory.max"]
            .iter()
            .find_map(|file| number(&folder.join(file)))
    });
    total.min(limit.unwrap_or(u64::MAX))
}

/// What is left for sites of all memory: an eighth is for what comes in bursts, PHP above all, and 136
/// MiB for the engine, for us, and for the programs in memory that everything runs from. With 124 MiB
/// for all of that, 512 MiB did nothing but read programs again once 55 sites were awake.
pub(crate) fn for_sites(all: u64) -> u64 {
    all.saturating_sub(all / 8)
        .saturating_sub(136 << 20)
        .max(all / 8)
}

/// Octets a cgroup holds that can't be taken back: all but file pages.
pub(crate) fn used(cgroup: &Path) -> Option<u64> {
    let all = ["memory.usage_in_bytes", "memory.current"]
        .iter()
        .find_map(|file| number(&cgroup.join(file)))?;
    let stat = fs::read_to_string(cgroup.join("memory.stat")).ok()?;
    // File pages can be read again: they are the system's, whoever read them first.
    let file: u64 = stat
        .lines()
        .filter_map(|line| line.strip_prefix("total_").unwrap_or(line).split_once(' '))
        .filter(|(key, _)| matches!(*key, "inactive_file" | "active_file"))
        .filter_map(|(_, octets)| octets.parse::<u64>().ok())
        .sum();
    // Version 1 says each twice, with and without what is below; these cgroups have nothing below.
    let file = if stat.contains("total_inactive_file") {
        file / 2
    } else {
        file
    };
    Some(all.saturating_sub(file))
}

/// The memory cgroup of a process, as a folder.
pub(crate) fn cgroup_of(pid: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let first = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers
            .split(',')
            .any(|controller| controller == "memory")
            .then(|| Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')))
    });
    first.or_else(|| {
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        Some(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
    })
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_some_and_we_use_less() {
        let host = of_the_host();
        assert!(host > 64 << 20 && host < u64::MAX);
        if let Some(used) = cgroup_of("self").and_then(|folder| used(&folder)) {
            assert!(used < 1 << 50);
        }
    }
}
