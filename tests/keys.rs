//! The keys of signed zones: commands beside Debian's own tools, and beside each other.

use std::{fs, time::Duration};

use common::dnssec::{Dnssec, Moment, Policy, Role, Store};
use hickory_proto::rr::Name;

use crate::harness::{Folder, HEAD, run};

const SIGNED: &str = "[dnssec]\nenabled = true\n";

/// A folder with a signed zone, keys made so many hours ago.
fn signed(hours: u64) -> (Folder, Store, Name) {
    let folder =
        Folder::new("[reverse]\ndnssec = true\nipv4_origin = \"0/25.2.0.192.in-addr.arpa\"\n");
    folder.zone(SIGNED);
    let store = Store::open(&folder.path().join("state/edge"));
    let origin = Name::from_ascii("w.example.").unwrap();
    for hours in [hours, 0] {
        let ago = Duration::from_secs(hours * 3_600);
        let mut moment = Moment::now();
        moment.wall -= ago;
        // As a server that started then, and another one now.
        let store = Store::open(&folder.path().join("state/edge"));
        let policy = Policy::new(&Dnssec::default(), 300, 300);
        store.keys(&origin, &policy, moment).unwrap();
    }
    (folder, store, origin)
}

/// The records of a master file, white space made one and digits of digests upper case.
fn records(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split(';').next().unwrap_or_default())
        .filter(|line| !line.is_empty())
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn the_ds_is_what_others_make_of_the_key() {
    let (folder, store, origin) = signed(0);
    let ksk = store
        .read(&origin)
        .unwrap()
        .signing_keys()
        .next()
        .unwrap()
        .clone();
    let file = folder.write(
        "Kw.example.key",
        &format!("w.example. 300 IN DNSKEY {}\n", ksk.dnskey()),
    );
    let shown = folder.run(&["zone", "ds", "w.example"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(
        shown.out.contains("; not before 20") && shown.out.contains("--published"),
        "{shown:?}"
    );
    let ours = records(&shown.out);
    let data = |line: &str| -> Vec<String> {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| *word != "DS")
            .skip(1);
        let fixed: Vec<String> = words.by_ref().take(3).map(str::to_owned).collect();
        let digest = words.collect::<String>().to_uppercase();
        fixed.into_iter().chain([digest]).collect()
    };
    assert!(
        ours.len() == 1 && ours[0].starts_with("w.example. 86400 IN DS "),
        "{ours:?}"
    );
    let file = file.to_str().unwrap();
    let bind = run("dnssec-dsfromkey", &["-2", "-f", file, "w.example"]);
    assert_eq!(data(&bind.out), data(&ours[0]), "{bind:?}");
    if ["/usr/bin/ldns-key2ds", "/usr/local/bin/ldns-key2ds"]
        .iter()
        .any(|path| fs::exists(path).unwrap())
    {
        let ldns = run("ldns-key2ds", &["-n", "-2", file]);
        assert_eq!(data(&ldns.out), data(&ours[0]), "{ldns:?}");
    }
    let json = folder
        .run(&["zone", "ds", "w.example", "--format", "json"])
        .json();
    assert_eq!(json["cds_published"], false);
    assert_eq!(records(json["ds"][0].as_str().unwrap()), ours);
}

#[test]
fn a_rollover_goes_from_command_to_command() {
    let (folder, store, origin) = signed(3);
    let early = folder.run(&["zone", "roll", "w.example", "ksk"]);
    assert!(
        early.code == 1 && early.err.contains("nuage zone ds --published"),
        "{early:?}"
    );
    let shown = folder.run(&["zone", "ds", "w.example"]);
    assert!(shown.out.contains("; CDS and CDNSKEY"), "{shown:?}");
    let keys = folder.run(&["zone", "keys", "w.example"]);
    assert!(
        keys.out.contains("waiting for the parent")
            && keys.out.contains("a successor is published"),
        "{keys:?}"
    );

    let confirmed = folder.run(&["zone", "ds", "w.example", "--published"]);
    assert!(
        confirmed.code == 0 && confirmed.out.starts_with("noted: "),
        "{confirmed:?}"
    );
    let again = folder.run(&["zone", "ds", "w.example", "--published"]);
    assert!(
        again.code == 1 && again.err.contains("confirmed already"),
        "{again:?}"
    );

    let rolled = folder.run(&["zone", "roll", "w.example", "ksk", "--format", "json"]);
    let rolled = rolled.json();
    let states: Vec<&str> = rolled
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["active", "published", "active"]);
    let early = folder.run(&["zone", "ds", "w.example", "--published"]);
    assert!(
        early.code == 1
            && early
                .err
                .contains("should not hold the new DS record before 20"),
        "{early:?}"
    );
    assert_eq!(store.read(&origin).unwrap().dnskeys().len(), 3);
}

#[test]
fn of_many_who_roll_at_once_one_does() {
    let (folder, store, origin) = signed(0);
    let before = store.read(&origin).unwrap();
    let done: Vec<i32> = std::thread::scope(|scope| {
        let each = || folder.run(&["zone", "roll", "w.example", "zsk"]).code;
        let all: Vec<_> = (0..8).map(|_| scope.spawn(each)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(
        done.iter().filter(|code| **code == 0).count(),
        1,
        "{done:?}"
    );
    let after = store.read(&origin).unwrap();
    assert_eq!(after.dnskeys().len(), 3);
    assert_eq!(after.zone_key(), before.zone_key());
    assert_eq!(after.held()[2].key().role(), Role::Zsk);
    let left = fs::read_dir(folder.path().join("state/edge/dnssec"))
        .unwrap()
        .count();
    assert_eq!(left, 1, "nothing but the zone's file");
}

#[test]
fn what_is_missing_is_told() {
    let (folder, store, origin) = signed(3);
    let missing = folder.run(&["zone", "ds", "0/25.2.0.192.in-addr.arpa"]);
    assert!(
        missing.code == 1
            && missing.err.contains("`nuage serve` makes them")
            && missing.err.contains("0%2f25"),
        "{missing:?}"
    );
    let nowhere = folder.run(&["zone", "keys", "x.example"]);
    assert!(nowhere.err.contains("there are w.example, "), "{nowhere:?}");

    folder.write("zones/w.example.toml", HEAD);
    let unsigned = folder.run(&["zone", "ds", "w.example"]);
    assert!(
        unsigned.code == 1
            && unsigned
                .err
                .contains("add [dnssec] with enabled = true to "),
        "{unsigned:?}"
    );
    assert!(
        unsigned.err.contains("may hold a DS record"),
        "{unsigned:?}"
    );

    folder.zone(SIGNED);
    folder.write("state/edge/dnssec/w.example.json", "{");
    for arguments in [
        ["zone", "ds", "w.example"].as_slice(),
        &["zone", "roll", "w.example", "zsk"],
    ] {
        let damaged = folder.run(arguments);
        assert!(
            damaged.code == 1 && damaged.err.contains("put back a copy from a backup"),
            "{damaged:?}"
        );
    }
    assert_eq!(fs::read_to_string(store.path(&origin)).unwrap(), "{");
}
