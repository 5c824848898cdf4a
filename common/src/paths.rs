//! Paths as people would write them.

use std::path::{Component, Path, PathBuf};

/// Joins a written path to the folder of the file that holds it, without `folder/..` in between
/// where that is the same place (it is not behind a symbolic link).
pub(crate) fn join(base: &Path, written: &str) -> PathBuf {
    let joined = base.join(written);
    let mut short = PathBuf::new();
    for component in joined.components() {
        match (component, short.components().next_back()) {
            (Component::ParentDir, Some(Component::Normal(_))) => drop(short.pop()),
            _ => short.push(component),
        }
    }
    let same = |a: &Path, b: &Path| {
        a.canonicalize()
            .ok()
            .zip(b.canonicalize().ok())
            .is_some_and(|(a, b)| a == b)
    };
    if same(&short, &joined) { short } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_round_is_cut_unless_it_leads_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["config", "zones", "far/deep"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        assert_eq!(join(&at("config"), "../zones"), at("zones"));
        std::os::unix::fs::symlink(at("far/deep"), at("link")).unwrap();
        assert_eq!(
            join(&at("link"), "../zones"),
            at("link/../zones"),
            "that is far/zones"
        );
        assert_eq!(
            join(Path::new("/etc/nuage"), "zones"),
            Path::new("/etc/nuage/zones")
        );
    }
}
