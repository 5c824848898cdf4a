//! An engine over TCP and TLS, which asks for a certificate.

use std::time::Duration;

use super::{Cloud, engine::Engine};
use crate::harness::{free_port, run, until, until_within};

/// A CA, and a certificate by it for the engine and for its client, as the engine's documentation
/// names them.
fn certificates(folder: &std::path::Path) {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=engine-ca \
            -keyout ca-key.pem -out ca.pem
        for who in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$who -keyout $who-key.pem -out $who.csr
            printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=%sAuth\\n' $who > $who.ext
            openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile $who.ext -out $who.pem
        done
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=stranger \
            -keyout stranger-key.pem -out stranger.pem";
    let made = run(
        "sh",
        &["-ec", &format!("cd '{}'; {script}", folder.display())],
    );
    assert_eq!(made.code, 0, "{made:?}");
}

#[test]
fn an_engine_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let (port, tls) = (free_port(), folder.path().display());
    let engine = Engine::start(&[
        "-H",
        &format!("tcp://127.0.0.1:{port}"),
        "--tlsverify",
        &format!("--tlscacert={tls}/ca.pem"),
        &format!("--tlscert={tls}/server.pem"),
        &format!("--tlskey={tls}/server-key.pem"),
    ]);
    let become_one = |name: &str| {
        for (from, to) in [("", "cert"), ("-key", "key")] {
            std::fs::copy(
                folder.path().join(format!("{name}{from}.pem")),
                folder.path().join(format!("{to}.pem")),
            )
            .unwrap();
        }
    };

    // With a certificate the engine doesn't know, it is told so, and visitors aren't kept waiting.
    become_one("stranger");
    let at = format!("engine = \"tcp://127.0.0.1:{port}\"\ntls = \"{tls}\"\n");
    let mut cloud = Cloud::prepare(Some(&engine.socket()), "[sites.alice]\n", &at, "");
    let nuage = cloud.folder().serve();
    until("it is told", || nuage.log().contains("no engine yet"));
    assert!(nuage.log().contains(&format!("tcp://127.0.0.1:{port}")));
    let refused = nuage.curl("http://alice.w.example/", &["--max-time", "60"]);
    become_one("client");
    cloud.nuage = Some(nuage);
    assert_eq!(refused.status, 503, "{refused:?}");

    // Mended, nothing has to be started again.
    until("the engine answers", || {
        cloud.nuage().log().contains("the engine answers")
    });
    until_within(Duration::from_secs(60), "the site answers", || {
        cloud.get("alice", "").status == 200
    });
    cloud.put("alice", "hello.php", "<?php echo 'hello ', 6 * 7;");
    assert_eq!(cloud.get("alice", "hello.php").body, "hello 42");
    // A stream both ways.
    let said = cloud.command(&[
        "site",
        "exec",
        "alice",
        "--",
        "sh",
        "-c",
        "echo out; exit 3",
    ]);
    assert_eq!((said.code, said.out.trim()), (3, "out"), "{said:?}");
    let slept = cloud.command(&["site", "sleep", "alice"]);
    assert_eq!(slept.code, 0, "{slept:?}");
    assert_eq!(cloud.get("alice", "hello.php").body, "hello 42");
    assert!(!cloud.nuage().log().contains("the engine is gone"));
}
