//! Paths as people would write them, and names of files that stand for zones.

use std::path::{Component, Path, PathBuf};

use hickory_proto::rr::Name;
use ring::digest::{SHA256, digest};

/// A file name has at most 255 octets, some of which an ending and the writing of it need.
const STEM_OCTETS: usize = 180;

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

/// The stem of a zone's file: its origin, where whatever is no letter, digit, hyphen or underscore is `%`
/// and two digits: a classless reverse zone has "/" in it (RFC 2317 §4). What would be too long ends in a
/// digest.
pub(crate) fn of_origin(origin: &Name) -> String {
    let mut text = String::new();
    for label in origin.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label.to_ascii_lowercase() {
            if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02x}"));
            }
        }
    }
    if text.len() > STEM_OCTETS {
        let digest: String = digest(&SHA256, text.as_bytes())
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        text.truncate(STEM_OCTETS - digest.len() - 1);
        // No label holds "~".
        text = format!("{text}~{digest}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_origin_has_a_file_name_of_its_own() {
        let name =
            |labels: &[&[u8]]| of_origin(&Name::from_labels(labels.iter().copied()).unwrap());
        assert_eq!(name(&[b"w", b"Example"]), "w.example");
        assert_eq!(
            name(&[b"0/25", b"2", b"0", b"192", b"in-addr", b"arpa"]),
            "0%2f25.2.0.192.in-addr.arpa"
        );
        assert_eq!(name(&[b"a.b", b"c"]), "a%2eb.c");
        assert_eq!(name(&[b"..", b"x"]), "%2e%2e.x");
        assert_eq!(name(&[]), "");
        let long = |last: &[u8]| name(&[&[b'/'; 63], &[b'/'; 63], last]);
        assert!(long(b"a").len() < 200 && long(b"a") != long(b"b"));
    }

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
