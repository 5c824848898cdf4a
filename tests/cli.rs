//! The command line, with and without a running server.

use std::fs;

use crate::harness::{Folder, HEAD, Nuage, run, until};

const ZONE: &str = "# kept\n[sites.alice] # first\nowner = \"alice\"\n\n[[records]]\nname = \"mail\"\ntype = \"A\"\ndata = \"192.0.2.25\"\n";

#[test]
fn sites_are_added_shown_changed_and_removed() {
    let folder = Folder::new("");
    folder.zone(ZONE);
    let file = folder.path().join("zones/w.example.toml");
    let text = || fs::read_to_string(&file).unwrap();

    let dry = folder.run(&[
        "site",
        "add",
        "bob",
        "--upstream",
        "http://127.0.0.1:9",
        "--dry-run",
    ]);
    assert_eq!(dry.code, 0, "{dry:?}");
    assert!(
        dry.out
            .contains("+[sites.bob]\n+upstream = \"http://127.0.0.1:9\"\n"),
        "{dry:?}"
    );
    assert_eq!(text(), format!("{HEAD}{ZONE}"), "a dry run changes nothing");

    let added = folder.run(&[
        "site",
        "add",
        "bob",
        "--upstream",
        "http://127.0.0.1:9",
        "--alias",
        "robert",
        "--group",
        "staff",
    ]);
    assert_eq!(added.code, 0, "{added:?}");
    assert!(
        added.out.starts_with("added bob in w.example ("),
        "{added:?}"
    );
    assert!(
        text().contains("# kept\n[sites.alice] # first\n")
            && text().contains("aliases = [\"robert\"]"),
        "{}",
        text()
    );
    assert!(
        text().find("[sites.bob]").unwrap() < text().find("[[records]]").unwrap(),
        "sites stay together"
    );

    let again = folder.run(&["site", "add", "bob"]);
    assert!(
        again.code == 1 && again.err.contains("nuage site set bob"),
        "{again:?}"
    );
    let taken = folder.run(&["site", "add", "robert"]);
    assert!(
        taken.code == 1
            && taken.err.contains("taken by line")
            && taken.err.contains("is unchanged"),
        "{taken:?}"
    );

    let listed = folder.run(&["site", "list", "--format", "json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(
        (&listed[1]["name"], &listed[1]["target"]),
        (&"bob".into(), &"http://127.0.0.1:9".into())
    );
    let shown = folder.run(&["site", "show", "bob.w.example"]);
    assert!(
        shown.out.contains("upstream http://127.0.0.1:9") && shown.out.contains("robert.w.example"),
        "{shown:?}"
    );

    let set = folder.run(&[
        "site",
        "set",
        "bob",
        "--redirect",
        "https://x.example/",
        "--owner",
        "bob",
        "--group",
        "",
        "--format",
        "json",
    ]);
    assert_eq!(set.json()["site"]["backend"], "redirect");
    assert!(
        !text().contains("upstream") && !text().contains("group"),
        "{}",
        text()
    );
    assert_eq!(
        folder.run(&["site", "set", "bob"]).code,
        1,
        "nothing to change"
    );

    let removed = folder.run(&["site", "remove", "bob"]);
    assert_eq!(removed.code, 0);
    assert_eq!(text(), format!("{HEAD}{ZONE}"), "as it was");
    let missing = folder.run(&["site", "remove", "bob"]);
    assert!(
        missing.code == 1 && missing.err.contains("no site bob"),
        "{missing:?}"
    );
}

#[test]
fn an_edit_under_a_running_server_is_live() {
    let nuage = Nuage::start(ZONE);
    let added = nuage.folder.run(&[
        "site",
        "add",
        "carol",
        "--redirect",
        "https://carol.example/",
    ]);
    assert_eq!(added.code, 0, "{added:?}");
    until("carol answers", || {
        nuage.curl("http://carol.w.example/", &[]).status == 307
    });
    // Many at once: none is lost.
    std::thread::scope(|scope| {
        for number in 0..8 {
            let folder = &nuage.folder;
            scope.spawn(move || {
                let added = folder.run(&["site", "add", &format!("many-{number}")]);
                assert_eq!(added.code, 0, "{added:?}");
            });
        }
    });
    let listed = nuage
        .folder
        .run(&["site", "list", "--format", "json"])
        .json();
    assert_eq!(listed.as_array().unwrap().len(), 10);
}

#[test]
fn several_zones_need_a_choice() {
    let folder = Folder::new("");
    folder.zone(ZONE);
    folder.write(
        "zones/v.example.toml",
        "origin = \"v.example\"\nnameservers = [\"ns1.v.example\"]\n",
    );
    let unclear = folder.run(&["site", "add", "x"]);
    assert!(
        unclear.code == 1
            && unclear.err.contains("--zone")
            && unclear.err.contains("v.example, w.example"),
        "{unclear:?}"
    );
    assert_eq!(
        folder
            .run(&["site", "add", "x", "--zone", "v.example"])
            .code,
        0
    );
    assert_eq!(folder.run(&["site", "add", "y.v.example"]).code, 0);
    let zones = folder.run(&["zone", "list", "--format", "json"]).json();
    let sites: Vec<u64> = zones
        .as_array()
        .unwrap()
        .iter()
        .map(|zone| zone["sites"].as_u64().unwrap())
        .collect();
    assert_eq!(sites, [2, 1, 0, 0]);
}

#[test]
fn zones_are_shown_with_their_delegation() {
    let folder = Folder::new("");
    folder.zone(ZONE);
    let shown = folder.run(&["zone", "show", "w.example"]);
    assert!(
        shown
            .out
            .contains("w.example.\t300\tIN\tNS\tns1.w.example."),
        "{shown:?}"
    );
    assert!(
        shown.out.contains("ns1.w.example.\t300\tIN\tA\t192.0.2.10"),
        "{shown:?}"
    );
    assert!(
        !shown.out.contains("ns.other.example.\t300\tIN\tA"),
        "no glue for what lies elsewhere"
    );
    let missing = folder.run(&["zone", "export", "x.example"]);
    assert!(
        missing.code == 1 && missing.err.contains("there are w.example, "),
        "{missing:?}"
    );
}

#[test]
fn exit_codes_and_json() {
    let folder = Folder::new("");
    folder.zone(ZONE);
    let good = folder.run(&["check"]);
    assert_eq!((good.code, &*good.out), (0, "ok: 1 site in 1 zone\n"));
    let usage = folder.run(&["site", "ad", "x"]);
    assert!(
        usage.code == 2 && usage.err.contains("similar subcommand"),
        "{usage:?}"
    );
    assert_eq!(
        folder
            .run(&[
                "site",
                "add",
                "x",
                "--upstream",
                "http://a",
                "--redirect",
                "http://b"
            ])
            .code,
        2
    );
    folder.zone("[sites.x]\nowner = 1\n");
    let bad = folder.run(&["check", "--format", "json"]);
    assert_eq!(bad.code, 1);
    let found = bad.json();
    assert_eq!(
        (
            &found["errors"],
            &found["problems"][0]["line"],
            &found["problems"][0]["column"]
        ),
        (&1.into(), &5.into(), &9.into())
    );
    let error = folder.run(&["zone", "show", "none", "--format", "json"]);
    assert!(
        error.code == 1 && error.err.contains("{\"error\":"),
        "{error:?}"
    );
    let bash = folder.run(&["completions", "bash"]);
    assert!(bash.code == 0 && bash.out.contains("_nuage()"));
    assert!(
        run(env!("CARGO_BIN_EXE_nuage"), &["--help"])
            .out
            .contains("Exit codes")
    );
    assert!(
        run(env!("CARGO_BIN_EXE_nuage"), &["--version"])
            .out
            .starts_with("nuage ")
    );
}

#[test]
fn the_shipped_files_are_right() {
    for config in ["config/demo.toml", "config/nuage.toml"] {
        let path = format!("{}/{config}", env!("CARGO_MANIFEST_DIR"));
        let checked = run(env!("CARGO_BIN_EXE_nuage"), &["check", "--config", &path]);
        assert_eq!((checked.code, &*checked.err), (0, ""), "{checked:?}");
    }
}
