//! Files that change in any way: what is served is what a fresh start would serve, or the last good
//! content.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::{
    Declared, Registry,
    durable::{Access, replace},
};
use proptest::prelude::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir(folder.0.path().join("zones")).unwrap();
        let config = "[address]\nipv4 = \"192.0.2.10\"\nipv6 = \"2001:db8::10\"\n[paths]\nstate = \"state\"\n";
        replace(&folder.config(), config.as_bytes(), Access::Everybody).unwrap();
        folder
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("nuage.toml")
    }

    fn zone(&self, number: usize) -> PathBuf {
        self.0
            .path()
            .join(format!("zones/zone{number}.example.toml"))
    }

    fn write(&self, number: usize, text: &[u8]) {
        replace(&self.zone(number), text, Access::Everybody).unwrap();
    }

    fn open(&self) -> Declared {
        Declared::open(&self.config()).unwrap()
    }
}

fn refreshed(declared: &mut Declared) -> &Registry {
    declared.refresh();
    declared.save_serials().unwrap();
    declared.registry()
}

/// One change of one of three files.
#[derive(Clone, Debug)]
enum Change {
    Sites(BTreeMap<u8, Option<u8>>),
    Broken,
    Removed,
}

fn change() -> impl Strategy<Value = (usize, Change)> {
    let sites = prop::collection::btree_map(0_u8..12, prop::option::of(0_u8..6), 0..6);
    let change = prop_oneof![6 => sites.prop_map(Change::Sites), 1 => Just(Change::Broken), 2 => Just(Change::Removed)];
    (0_usize..3, change)
}

/// Sites by number, some with a foreign domain, which two zones may both claim.
fn text(number: usize, sites: &BTreeMap<u8, Option<u8>>) -> String {
    let mut text = format!(
        "origin = \"zone{number}.example\"\nnameservers = [\"ns1.zone{number}.example\"]\n"
    );
    for (site, domain) in sites {
        text.push_str(&format!("[sites.site{site}]\n"));
        if let Some(domain) = domain {
            text.push_str(&format!(
                "domains = [\"d{domain}.foreign{site}.example\"]\n"
            ));
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_edits_lead_where_a_fresh_start_does(changes in prop::collection::vec(change(), 1..12)) {
        let folder = Folder::new();
        let mut declared = folder.open();
        for (number, change) in &changes {
            match change {
                Change::Sites(sites) => folder.write(*number, text(*number, sites).as_bytes()),
                Change::Broken => folder.write(*number, b"origin = [\n"),
                Change::Removed => drop(fs::remove_file(folder.zone(*number))),
            }
            let before = declared.registry().clone();
            refreshed(&mut declared);
            if matches!(change, Change::Broken) {
                // A break alone changes nothing.
                let served = |registry: &Registry| registry.zones.iter().map(|zone| zone.origin.clone()).collect::<Vec<_>>();
                prop_assert_eq!(served(&before), served(declared.registry()));
            }
        }
        let fresh = folder.open();
        if !fresh.problems().iter().any(common::Problem::is_error) {
            prop_assert_eq!(&**declared.registry(), &**fresh.registry());
            prop_assert!(!declared.problems().iter().any(common::Problem::is_error), "{:?}", declared.problems());
        }
    }

    #[test]
    fn no_text_panics(octets in prop::collection::vec(any::<u8>(), 0..200), tail in "[a-z\\[\\]\"=. \n{}#]{0,120}") {
        let folder = Folder::new();
        let config = common::Config::load(&folder.config()).unwrap();
        for text in [String::from_utf8_lossy(&octets).into_owned(), tail] {
            let parsed = common::zone::parse(Path::new("z.toml"), &text, &config);
            prop_assert!(parsed.zone.is_some() || parsed.problems.iter().any(common::Problem::is_error));
            // What is no configuration says why.
            prop_assert!(common::Config::parse(Path::new("n.toml"), &text).map_or_else(|broken| !broken.problems.is_empty(), |_| true));
        }
    }
}

const FILE: &str = "# sites\norigin = \"zone0.example\"\nnameservers = [\"ns1.zone0.example\"]\n\n[sites.alice]\nowner = \"é\"\naliases = [\"al\"]\n\n[sites.bob]\nredirect = \"https://bob.example/\"\n\n[[records]]\nname = \"@\"\ntype = \"MX\"\ndata = \"10 mx.school.example.\"\n";

/// Serves the good file, then `octets` in its place: either they are right and served as a fresh
/// start would, or nothing changes and the problem has its place.
fn survives(folder: &Folder, declared: &mut Declared, octets: &[u8], what: &str) {
    folder.write(0, FILE.as_bytes());
    let good = refreshed(declared).clone();
    folder.write(0, octets);
    let now = refreshed(declared).clone();
    let problems: Vec<_> = declared
        .problems()
        .into_iter()
        .filter(common::Problem::is_error)
        .collect();
    if problems.is_empty() {
        assert_eq!(now, **folder.open().registry(), "{what}");
    } else {
        assert_eq!(now, good, "{what}");
        let placed = problems
            .iter()
            .all(|problem| problem.position.is_some() || problem.message.contains("not UTF-8"));
        assert!(
            placed
                && problems
                    .iter()
                    .all(|problem| problem.file.ends_with("zone0.example.toml")),
            "{what}: {problems:?}"
        );
    }
}

#[test]
fn a_file_cut_at_any_octet_or_with_any_octet_changed_takes_nothing_down() {
    let folder = Folder::new();
    folder.write(0, FILE.as_bytes());
    let mut declared = folder.open();
    for cut in 0..FILE.len() {
        survives(
            &folder,
            &mut declared,
            &FILE.as_bytes()[..cut],
            &format!("cut at {cut}"),
        );
    }
    for at in 0..FILE.len() {
        for octet in [0, b'"', b'[', b'\n', b'z', 0xff] {
            let mut octets = FILE.as_bytes().to_vec();
            octets[at] = octet;
            survives(&folder, &mut declared, &octets, &format!("{octet} at {at}"));
        }
    }
}

#[test]
fn a_zone_inside_a_signed_one_has_to_be_delegated_by_it() {
    let folder = Folder::new();
    let zone = |origin: &str, rest: &str| {
        let head = format!("origin = \"{origin}\"\nnameservers = [\"ns.other.example\"]\n{rest}");
        let path = folder.0.path().join(format!("zones/{origin}.toml"));
        replace(&path, head.as_bytes(), Access::Everybody).unwrap();
    };
    let warnings = |declared: &Declared| -> Vec<String> {
        declared
            .problems()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    zone("w.example", "[dnssec]\nenabled = true\n");
    zone("b.w.example", "");
    zone("a.b.w.example", "");
    let mut declared = folder.open();
    let told = warnings(&declared);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("b.w.example lies inside w.example, which is signed"),
        "{told:?}"
    );
    // Below a delegation of its own it is the delegated one's affair.
    let far = "[[records]]\nname = \"c\"\ntype = \"NS\"\ndata = \"ns.other.example.\"\n";
    zone("d.c.w.example", "");
    zone("w.example", &format!("[dnssec]\nenabled = true\n{far}"));
    refreshed(&mut declared);
    assert_eq!(warnings(&declared).len(), 1);
    fs::remove_file(folder.0.path().join("zones/d.c.w.example.toml")).unwrap();
    let record = "[[records]]\nname = \"b\"\ntype = \"NS\"\ndata = \"ns.other.example.\"\n";
    zone("w.example", &format!("[dnssec]\nenabled = true\n{record}"));
    refreshed(&mut declared);
    assert_eq!(warnings(&declared), Vec::<String>::new());
}

#[test]
fn an_origin_is_that_of_one_zone_forward_or_reverse() {
    let folder = Folder::new();
    let config = fs::read_to_string(folder.config()).unwrap();
    let with = |reverse: &str| {
        let text = format!("{config}[reverse]\n{reverse}\n");
        replace(&folder.config(), text.as_bytes(), Access::Everybody).unwrap();
    };
    let errors = |declared: &Declared| -> Vec<String> {
        let problems = declared.problems();
        let errors = problems.iter().filter(|problem| problem.is_error());
        errors.map(ToString::to_string).collect()
    };
    let serials = |registry: &Registry| -> BTreeMap<String, u32> {
        let served = registry.served.iter();
        let all: Vec<_> = served
            .map(|zone| (zone.authority.apex.to_string(), zone.serial))
            .collect();
        let count = all.len();
        let serials = BTreeMap::from_iter(all);
        assert_eq!(serials.len(), count, "{serials:?}");
        serials
    };
    folder.write(0, text(0, &BTreeMap::new()).as_bytes());
    let ours = "origin = \"2.0.192.in-addr.arpa\"\nnameservers = [\"ns1.zone0.example\"]\n";
    let file = folder.0.path().join("zones/reverse.toml");
    replace(&file, ours.as_bytes(), Access::Everybody).unwrap();
    with("ipv4_origin = \"2.0.192.in-addr.arpa\"");
    let mut declared = folder.open();
    let told = errors(&declared);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("nuage.toml")
            && told[0].contains("zones/reverse.toml declares 2.0.192.in-addr.arpa")
            && told[0].contains("192.0.2.10 has no PTR records: remove that file"),
        "{told:?}"
    );
    assert_eq!(declared.registry().reverse.len(), 1);
    let before = serials(declared.registry());
    assert_eq!(before.len(), 3);
    // Edits of others leave its serial alone.
    for site in 0..3 {
        folder.write(0, text(0, &BTreeMap::from([(site, None)])).as_bytes());
        let now = serials(refreshed(&mut declared));
        for (zone, serial) in &before {
            assert_eq!(
                *zone == "2.0.192.in-addr.arpa.",
                now[zone] == *serial,
                "{zone}"
            );
        }
    }

    with("ipv4_origin = \"rev.example\"\nipv6_origin = \"rev.example\"");
    let declared = folder.open();
    let told = errors(&declared);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("192.0.2.10 has the origin rev.example")
            && told[0].contains("2001:db8::10 has no PTR records: name another with ipv6_origin"),
        "{told:?}"
    );
    serials(declared.registry());
    with("");
    assert_eq!(errors(&folder.open()), Vec::<String>::new());
}

#[test]
fn conflicts_between_zones_are_settled_for_what_was_served_first() {
    let folder = Folder::new();
    let sites = |pairs: &[(u8, u8)]| {
        pairs
            .iter()
            .map(|(site, domain)| (*site, Some(*domain)))
            .collect()
    };
    folder.write(1, text(1, &sites(&[(1, 1)])).as_bytes());
    let mut declared = folder.open();
    // Zone 0 sorts first, and yet comes second.
    folder.write(0, text(0, &sites(&[(1, 1), (2, 2)])).as_bytes());
    let registry = refreshed(&mut declared);
    assert_eq!(
        registry
            .route("d1.foreign1.example")
            .unwrap()
            .zone
            .origin
            .as_str(),
        "zone1.example"
    );
    assert!(registry.zone("zone0.example").is_none());
    let told = declared.problems();
    assert!(
        told[0].file.ends_with("zone0.example.toml")
            && told[0].message.contains("taken by site1 in zone1.example"),
        "{told:?}"
    );
    // The first lets go: the second is served without a touch.
    folder.write(1, text(1, &BTreeMap::new()).as_bytes());
    let registry = refreshed(&mut declared);
    assert_eq!(
        registry
            .route("d1.foreign1.example")
            .unwrap()
            .zone
            .origin
            .as_str(),
        "zone0.example"
    );
    assert!(
        declared
            .problems()
            .iter()
            .all(|problem| !problem.is_error())
    );
}
