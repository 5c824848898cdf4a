//! Files that change, break and vanish under a running server.

use std::{fs, net::UdpSocket, time::Instant};

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};

use crate::{
    client::{Over, ask},
    harness::{Folder, HEAD, Nuage, free_port, until},
};

const ZONE: &str = "# the web sites\n[sites.alice]\nredirect = \"https://alice.example/\"\naliases = [\"al\"]\n\n[[records]]\nname = \"mail\"\ntype = \"A\"\ndata = \"192.0.2.25\"\n";

fn exists(nuage: &Nuage, name: &str) -> bool {
    let answer = ask(
        nuage.dns[0],
        Over::Udp,
        &format!("{name}.w.example."),
        RecordType::A,
    );
    answer.metadata.response_code == ResponseCode::NoError
}

fn serial(nuage: &Nuage) -> u32 {
    match &ask(nuage.dns[0], Over::Udp, "w.example.", RecordType::SOA).answers[0].data {
        RData::SOA(soa) => soa.serial,
        other => panic!("{other}"),
    }
}

#[test]
fn three_lines_name_a_site_everywhere() {
    let nuage = Nuage::start(ZONE);
    assert!(!exists(&nuage, "new"));
    let before = serial(&nuage);
    nuage.folder.write("www/index.html", "new here");
    nuage
        .folder
        .zone(&format!("{ZONE}[sites.new]\nstatic = \"../www\"\n"));
    let written = Instant::now();
    until("the name resolves", || exists(&nuage, "new"));
    println!("live after {:?}", written.elapsed());
    assert_eq!(nuage.curl("http://new.w.example/", &[]).body, "new here");
    assert_eq!(nuage.curl("https://new.w.example/", &[]).body, "new here");
    let names = ask(
        nuage.dns[1],
        Over::Tcp,
        "10.2.0.192.in-addr.arpa.",
        RecordType::PTR,
    );
    assert!(
        names
            .answers
            .iter()
            .any(|record| record.data.to_string() == "new.w.example.")
    );
    assert!(serial(&nuage) > before, "the serial grows");

    nuage.folder.zone(ZONE);
    until("the name is gone", || !exists(&nuage, "new"));
    assert_eq!(nuage.curl("http://new.w.example/", &[]).status, 404);
    // A second zone, and its end.
    nuage.folder.write(
        "zones/v.example.toml",
        "origin = \"v.example\"\nnameservers = [\"ns1.v.example\"]\n[sites.x]\n",
    );
    until("the zone is served", || {
        ask(nuage.dns[0], Over::Udp, "x.v.example.", RecordType::A)
            .answers
            .len()
            == 1
    });
    fs::remove_file(nuage.folder.path().join("zones/v.example.toml")).unwrap();
    until("the zone is refused", || {
        ask(nuage.dns[0], Over::Udp, "x.v.example.", RecordType::A)
            .metadata
            .response_code
            == ResponseCode::Refused
    });
}

#[test]
fn a_file_written_in_place_is_followed_too() {
    let nuage = Nuage::start(ZONE);
    let path = nuage.folder.path().join("zones/w.example.toml");
    use std::io::Write;
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(b"[sites.late]\n").unwrap();
    until("the name resolves", || exists(&nuage, "late"));
}

#[test]
fn broken_files_change_nothing_and_say_where() {
    let nuage = Nuage::start(ZONE);
    let good = format!("{HEAD}{ZONE}");
    for (text, place) in [
        (good.replace("[sites.alice]", "[sites.alice"), ":5:"),
        (good.replace("redirect =", "redirct ="), ":6:1:"),
        (good.replace("\"al\"", "\"al\", \"al\""), ":7:"),
        (good.replace("192.0.2.25", "192.0.2.999"), ":12:8:"),
        (String::new(), ":1:1:"),
        (format!("{good}[sites.alice]\n"), ":13:"),
        ("\u{0}\u{1}".to_owned(), ":1:"),
    ] {
        nuage.folder.write("zones/w.example.toml", &text);
        until("the problem is known", || {
            nuage
                .metrics()
                .contains("nuage_config_problems{severity=\"error\"} ")
                && !nuage
                    .metrics()
                    .contains("nuage_config_problems{severity=\"error\"} 0\n")
        });
        assert!(
            exists(&nuage, "alice") && exists(&nuage, "al") && exists(&nuage, "mail"),
            "{text}"
        );
        assert_eq!(nuage.curl("http://alice.w.example/", &[]).status, 307);
        let checked = nuage.folder.run(&["check"]);
        assert_eq!(checked.code, 1, "{text}: {checked:?}");
        assert!(
            checked.err.contains(&format!("w.example.toml{place}")),
            "{place}: {}",
            checked.err
        );
        nuage.folder.write("zones/w.example.toml", &good);
        until("it is mended", || {
            nuage
                .metrics()
                .contains("nuage_config_problems{severity=\"error\"} 0\n")
        });
    }
    assert!(
        nuage
            .metrics()
            .contains("nuage_config_reloads_total{result=\"failure\"} ")
    );
    // Not text at all, not readable, not there.
    let path = nuage.folder.path().join("zones/w.example.toml");
    common::durable::replace(&path, b"\xff\xfe", common::durable::Access::Everybody).unwrap();
    until("the problem is known", || nuage.log().contains("not UTF-8"));
    assert!(exists(&nuage, "alice"));
    fs::rename(
        nuage.folder.path().join("zones"),
        nuage.folder.path().join("away"),
    )
    .unwrap();
    until("the folder is missed", || {
        nuage.log().contains("there is no such folder")
    });
    assert!(
        exists(&nuage, "alice"),
        "the last good content outlives its folder"
    );
    fs::rename(
        nuage.folder.path().join("away"),
        nuage.folder.path().join("zones"),
    )
    .unwrap();
    nuage.folder.zone("[sites.bob]\n");
    until("the folder is followed again", || exists(&nuage, "bob"));
}

#[test]
fn a_name_taken_by_another_zone_keeps_both_as_they_were() {
    let nuage = Nuage::start("[sites.alice]\ndomains = [\"www.shared.example\"]\n");
    let second = |domain: &str| {
        format!(
            "origin = \"v.example\"\nnameservers = [\"ns1.v.example\"]\n[sites.x]\ndomains = [\"{domain}\"]\n"
        )
    };
    nuage
        .folder
        .write("zones/v.example.toml", &second("www.own.example"));
    until("the second zone is served", || {
        nuage.curl("http://www.own.example/", &[]).status == 503
    });
    nuage
        .folder
        .write("zones/v.example.toml", &second("www.shared.example"));
    until("the conflict is told", || {
        nuage.log().contains("is taken by alice in w.example")
    });
    assert_eq!(
        nuage.curl("http://www.own.example/", &[]).status,
        503,
        "the second zone as it was"
    );
    assert_eq!(nuage.curl("http://www.shared.example/", &[]).status, 503);
}

#[test]
fn serials_survive_a_restart() {
    let mut nuage = Nuage::start(ZONE);
    let before = serial(&nuage);
    nuage.signal("TERM");
    assert_eq!(nuage.ended(), 0);
    let folder = Folder::new("");
    folder.zone(ZONE);
    fs::create_dir_all(folder.path().join("state/edge")).unwrap();
    fs::copy(
        nuage.folder.path().join("state/edge/serials.json"),
        folder.path().join("state/edge/serials.json"),
    )
    .unwrap();
    let nuage = folder.serve();
    assert_eq!(serial(&nuage), before, "the same content keeps its serial");
    nuage.folder.zone(&format!("{ZONE}[sites.new]\n"));
    until("the name resolves", || exists(&nuage, "new"));
    assert!(serial(&nuage) > before);
}

#[test]
fn sighup_reads_the_configuration_again() {
    let nuage = Nuage::start(ZONE);
    let config = fs::read_to_string(nuage.folder.config()).unwrap();
    nuage
        .folder
        .write("nuage.toml", &config.replace("192.0.2.10", "192.0.2.11"));
    nuage.signal("HUP");
    until("the address changes", || {
        let answer = ask(nuage.dns[0], Over::Udp, "alice.w.example.", RecordType::A);
        answer
            .answers
            .first()
            .is_some_and(|record| record.data.to_string() == "192.0.2.11")
    });
    // What is not an address changes too.
    nuage.folder.write(
        "nuage.toml",
        &config.replace("[dns]", "[reverse]\ncanonical = \"mail.example\"\n[dns]"),
    );
    nuage.signal("HUP");
    until("the reverse zone changes", || {
        let answer = ask(
            nuage.dns[0],
            Over::Tcp,
            "10.2.0.192.in-addr.arpa.",
            RecordType::PTR,
        );
        answer
            .answers
            .first()
            .is_some_and(|record| record.data.to_string() == "mail.example.")
    });
    nuage.folder.write("nuage.toml", "nonsense");
    nuage.signal("HUP");
    until("the problem is told", || {
        nuage.log().contains("nuage.toml:1:")
    });
    assert!(exists(&nuage, "alice"));
    // It stays a problem until it is mended, also to the looks that follow.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(
        nuage
            .metrics()
            .contains("nuage_config_problems{severity=\"error\"} 1\n"),
        "{}",
        nuage.metrics()
    );
}

#[test]
fn a_bad_start_names_everything_and_starts_nothing() {
    let folder = Folder::new("");
    folder.zone("[sites.a]\nstatik = \"x\"\n[sites.a_b]\n");
    folder.write("zones/second.toml", "origin = 3\n");
    let ran = folder.run(&["serve"]);
    assert_eq!(ran.code, 1);
    for problem in [
        "second.toml:1:10:",
        "w.example.toml:5:1:",
        "w.example.toml:6:8:",
        "did you mean \"static\"?",
        "not started: ",
    ] {
        assert!(ran.err.contains(problem), "{problem}: {}", ran.err);
    }
    assert!(
        !folder.path().join("state").exists(),
        "nothing half-started"
    );

    // A slip in nuage.toml hides none of the zones'.
    let config = fs::read_to_string(folder.config()).unwrap();
    folder.write("nuage.toml", &config.replace("[http]", "[htpp]"));
    let ran = folder.run(&["check"]);
    assert!(
        ran.code == 1
            && ran.err.contains("did you mean \"http\"?")
            && ran.err.contains("second.toml:1:10:"),
        "{}",
        ran.err
    );

    let missing = Folder::new("");
    fs::remove_dir(missing.path().join("zones")).unwrap();
    let ran = missing.run(&["serve"]);
    assert!(
        ran.code == 1 && ran.err.contains("there is no such folder: make it"),
        "{ran:?}"
    );
    let nowhere = Folder::new("");
    fs::remove_file(nowhere.config()).unwrap();
    let ran = nowhere.run(&["serve"]);
    assert!(
        ran.code == 1 && ran.err.contains("--config FILE"),
        "{ran:?}"
    );
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let port = free_port();
    let _taken = UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let folder = Folder::new("");
    let config = fs::read_to_string(folder.config()).unwrap().replacen(
        "127.0.0.1:0",
        &format!("127.0.0.1:{port}"),
        1,
    );
    folder.write("nuage.toml", &config);
    folder.zone(ZONE);
    let ran = folder.run(&["serve"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains(&format!(
            "can't listen on 127.0.0.1:{port} ([dns] listen): another program uses port {port}"
        )),
        "{}",
        ran.err
    );
}
