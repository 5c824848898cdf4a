//! A site's days: made, seen, idle, woken, changed, gone.

use super::{Cloud, Load};
use crate::harness::{run, until};

const IDLE: &str = "[groups.default]\ndoze_after = \"1s\"\nsleep_after = \"3s\"\n";

#[test]
fn one_line_is_a_php_site_of_her_own() {
    let cloud = Cloud::start("", "");
    let added = cloud.command(&["site", "add", "alice"]);
    assert_eq!(added.code, 0, "{added:?}");
    assert!(added.out.contains("files go to"), "{added:?}");
    let welcome = cloud
        .nuage()
        .curl("https://alice.w.example/", &["-H", "Accept-Language: fr"]);
    assert_eq!(welcome.status, 200, "{welcome:?}");
    assert!(
        welcome.body.contains("lang=\"fr\"") && welcome.body.contains("<dt>PHP</dt>"),
        "{}",
        welcome.body
    );

    cloud.put(
        "alice",
        "index.php",
        "<?php echo posix_getuid(), ' ', $_SERVER['HTTPS'] ?? '-', ' ', $_SERVER['REMOTE_ADDR'];",
    );
    let page = cloud.nuage().curl("https://alice.w.example/", &[]);
    let uid = cloud
        .command(&["site", "exec", "alice", "--", "id", "-u"])
        .out;
    assert!(uid.trim().parse::<u32>().unwrap() >= 2_100_000_000, "{uid}");
    assert_eq!(page.body, format!("{} on 127.0.0.1", uid.trim()));
    cloud.put(
        "alice",
        ".htaccess",
        "RewriteEngine On\nRewriteRule ^pretty/(.+)$ ask.php?q=$1 [L]\n",
    );
    cloud.put(
        "alice",
        "ask.php",
        "<?php echo strrev($_GET['q']); error_log('seen by the owner');",
    );
    assert_eq!(cloud.get("alice", "pretty/abc").body, "cba");
    until("the log says it", || {
        cloud
            .command(&["site", "logs", "alice"])
            .out
            .contains("seen by the owner")
    });

    // What it may not do.
    let shell = |script: &str| cloud.command(&["site", "exec", "alice", "--", "sh", "-c", script]);
    assert_ne!(shell("touch /etc/x").code, 0, "the root is read-only");
    assert!(
        shell("grep CapEff /proc/self/status")
            .out
            .contains("0000000000000000")
    );
    assert!(shell("grep NoNewPrivs /proc/self/status").out.contains('1'));
    assert_eq!(shell("exit 7").code, 7);
    let fed = std::process::Command::new("sh")
        .args([
            "-c",
            "echo fed | \"$0\" --config \"$1\" site exec alice -- cat",
            env!("CARGO_BIN_EXE_nuage"),
        ])
        .arg(cloud.config.as_os_str())
        .output()
        .unwrap();
    assert_eq!(fed.stdout, b"fed\n", "{fed:?}");
    let stats = cloud.command(&["site", "stats"]);
    assert!(
        stats.out.contains("alice.w.example") && stats.out.contains("awake"),
        "{stats:?}"
    );
    let capacity = cloud.command(&["capacity"]);
    assert!(capacity.out.contains("1 declared: 1 awake"), "{capacity:?}");
    // No engine socket, no secrets of ours.
    assert_eq!(
        shell("ls /var/run/docker.sock /run/docker.sock 2>/dev/null").out,
        ""
    );
}

#[test]
fn idle_sites_doze_then_sleep_and_wake_when_asked() {
    let cloud = Cloud::start(
        "[sites.alice]\n",
        "[groups.default]\ndoze_after = \"1s\"\nsleep_after = \"8s\"\n",
    );
    assert_eq!(cloud.state_of("alice"), "archived");
    assert_eq!(cloud.get("alice", "").status, 200);
    cloud.becomes("alice", "dozing");
    // Told a moment before it is so.
    until("it is frozen", || {
        cloud.inspect("alice", "{{.State.Paused}}") == "true"
    });
    assert_eq!(cloud.get("alice", "").status, 200);
    cloud.becomes("alice", "asleep");
    assert_eq!(
        cloud.inspect("alice", "{{.State.Running}} {{.State.ExitCode}}"),
        "false 0",
        "it ended politely"
    );
    assert_eq!(cloud.get("alice", "").status, 200);
    assert!(cloud.metric("nuage_site_wake_duration_seconds_count{from=\"dozing\"}") >= 1.0);
    assert!(cloud.metric("nuage_site_wake_duration_seconds_count{from=\"asleep\"}") >= 2.0);
    for (word, state) in [("sleep", "asleep"), ("wake", "awake"), ("restart", "awake")] {
        let before = cloud.inspect("alice", "{{.State.StartedAt}}");
        let ran = cloud.command(&["site", word, "alice"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.contains(state), "{ran:?}");
        assert_eq!(
            before != cloud.inspect("alice", "{{.State.StartedAt}}"),
            word != "sleep"
        );
    }
}

#[test]
fn a_site_nobody_has_seen_for_long_is_archived_with_its_files() {
    let cloud = Cloud::start(
        "[sites.alice]\n",
        "[groups.default]\ndoze_after = \"1s\"\nsleep_after = \"1s\"\narchive_after = \"2s\"\n",
    );
    cloud.get("alice", "");
    cloud.put("alice", "index.html", "still here");
    cloud.becomes("alice", "archived");
    until("its container is gone", || {
        cloud.container("alice").is_empty()
    });
    assert_eq!(cloud.get("alice", "").body, "still here");
}

#[test]
fn robots_wake_nobody_and_people_see_the_site_wake() {
    let slow =
        "[sites.alice]\ncommand = [\"sh\", \"-c\", \"sleep 5; exec /usr/local/bin/start\"]\n";
    let cloud = Cloud::start(slow, "");
    for robot in ["Googlebot/2.1", "Prometheus/2.42", "kube-probe/1.29"] {
        let refused = cloud
            .nuage()
            .curl("http://alice.w.example/", &["-A", robot]);
        assert_eq!(refused.status, 503, "{robot}");
        assert!(refused.header("retry-after").is_some());
    }
    assert!(cloud.container("alice").is_empty());

    let html = "Accept: text/html,*/*";
    let started = std::time::Instant::now();
    let waking = cloud.nuage().curl("http://alice.w.example/", &["-H", html]);
    let waited = started.elapsed().as_secs_f64();
    assert_eq!(waking.status, 503, "{waking:?}");
    assert!((1.9..4.0).contains(&waited), "{waited}");
    assert_eq!(waking.header("cache-control"), Some("no-store"));
    assert_eq!(waking.header("retry-after"), Some("2"));
    assert!(waking.body.contains("http-equiv=\"refresh\"") && waking.body.contains("<script>"));
    // Everything else is held until it is there; a form too.
    assert_eq!(
        cloud
            .nuage()
            .curl("http://alice.w.example/", &["-d", "a=b", "-H", html])
            .status,
        200
    );
}

#[test]
fn robots_keep_nobody_awake() {
    let cloud = Cloud::start("[sites.alice]\n", IDLE);
    assert_eq!(cloud.get("alice", "").status, 200);
    let probe = || {
        cloud
            .nuage()
            .curl("http://alice.w.example/", &["-A", "kube-probe/1.29"])
    };
    assert_eq!(probe().status, 200, "awake, it answers anyone");
    until("it dozes though it is probed", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        probe().status == 503
    });
}

/// Statuses of sites asked at the same moment.
fn at_once(cloud: &Cloud, sites: Vec<String>) -> Vec<String> {
    let address = cloud.nuage().http[0];
    let ask = |site: String| {
        let host = format!("Host: {site}.w.example");
        std::thread::spawn(move || {
            let url = format!("http://{address}/");
            let options = ["-s", "-o", "/dev/null", "-w", "%{http_code}"];
            let more = ["--max-time", "60", "-H", &host, &url];
            run("curl", &[&options[..], &more].concat()).out
        })
    };
    let asked: Vec<_> = sites.into_iter().map(ask).collect();
    asked
        .into_iter()
        .map(|asked| asked.join().unwrap())
        .collect()
}

#[test]
fn one_wake_for_all_who_wait() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    for status in at_once(&cloud, vec!["alice".to_owned(); 30]) {
        assert_eq!(status, "200");
    }
    assert!(
        (cloud.metric("nuage_site_wake_duration_seconds_count{from=\"asleep\"}") - 1.0).abs() < 0.1
    );
}

#[test]
fn a_site_in_use_is_not_put_to_sleep() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    cloud.put(
        "alice",
        "slow.php",
        "<?php touch('begun'); sleep(4); echo 'done';",
    );
    assert_eq!(cloud.get("alice", "").status, 200);
    let url = format!("http://{}/slow.php", cloud.nuage().http[0]);
    let visitor =
        std::thread::spawn(move || run("curl", &["-s", "-H", "Host: alice.w.example", &url]).out);
    until("the visitor is served", || {
        cloud.files("alice").join("begun").exists()
    });
    let refused = cloud.command(&["site", "sleep", "alice"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.err.contains("a visitor is looking at it"),
        "{refused:?}"
    );
    assert_eq!(visitor.join().unwrap(), "done");
    until("it may sleep", || {
        cloud.command(&["site", "sleep", "alice"]).code == 0
    });
    assert_eq!(cloud.state_of("alice"), "asleep");
}

#[test]
fn fifty_sites_at_once() {
    use std::fmt::Write as _;
    let mut sites = String::new();
    for number in 0..50 {
        writeln!(sites, "[sites.s{number}]").unwrap();
    }
    let cloud = Cloud::start(&sites, "");
    let names = (0..50).map(|number| format!("s{number}")).collect();
    for status in at_once(&cloud, names) {
        assert_eq!(status, "200");
    }
    assert!(
        (cloud.metric("nuage_site_wake_duration_seconds_count{from=\"asleep\"}") - 50.0).abs()
            < 0.1,
        "each once"
    );
    let leases = std::fs::read_to_string(cloud.state.join("leases.json")).unwrap();
    let leases: serde_json::Value = serde_json::from_str(&leases).unwrap();
    let distinct = |key: &str| {
        let sites = leases["sites"].as_object().unwrap().values();
        sites
            .map(|lease| lease[key].to_string())
            .collect::<std::collections::HashSet<_>>()
            .len()
    };
    assert_eq!((distinct("uid"), distinct("index")), (50, 50));
}

#[test]
fn the_budget_holds_and_the_longest_idle_makes_room() {
    let cloud = Cloud::start(
        "[sites.a]\n[sites.b]\n[sites.c]\n[sites.d]\n",
        "[capacity]\nmemory = \"45MiB\"\n[groups.default]\ndisk = \"none\"\n",
    );
    for site in ["a", "b", "c", "d"] {
        assert_eq!(cloud.get(site, "").status, 200, "{site}");
        std::thread::sleep(std::time::Duration::from_millis(2_200));
    }
    assert_eq!(cloud.state_of("d"), "awake");
    cloud.becomes("a", "asleep");
    assert!(cloud.metric("nuage_site_evictions_total") >= 1.0);
    assert!(cloud.metric("nuage_capacity_used_bytes") <= 45.0 * 1_048_576.0);
}

#[test]
fn an_open_websocket_keeps_a_site_awake() {
    // The image has no WebSocket server: PHP speaks the opening and then says nothing for long.
    let cloud = Cloud::start(
        "[sites.alice]\nport = 9000\ncommand = [\"php-cgi\", \"-q\", \"/var/www/html/ws.php\"]\n[sites.other]\n",
        IDLE,
    );
    cloud.get("other", "");
    let prepared = run(
        "curl",
        &[
            "-s",
            "-X",
            "POST",
            "--unix-socket",
            cloud.state.join("control.sock").to_str().unwrap(),
            "http://control/v1/sites/alice.w.example/prepare",
            "-w",
            "%{http_code}",
        ],
    );
    assert_eq!(prepared.out, "200");
    cloud.put(
        "alice",
        "ws.php",
        r#"<?php $s = stream_socket_server("tcp://0.0.0.0:9000");
while (true) { $c = @stream_socket_accept($s, 3600); if (!$c) continue; $head = '';
 while (($line = fgets($c)) !== false && trim($line) !== '') $head .= $line;
 if ($head === '') { fclose($c); continue; }
 preg_match('/Sec-WebSocket-Key: (.*)\r/i', $head, $m);
 $accept = base64_encode(sha1($m[1] . '258EAFA5-E914-47DA-95CA-C5AB0DC85B11', true));
 fwrite($c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: $accept\r\n\r\n");
 $kept[] = $c; }"#,
    );
    let address = cloud.nuage().http[0];
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: alice.w.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    // Longer than it takes to fall asleep.
    cloud.becomes("other", "asleep");
    assert_eq!(cloud.state_of("alice"), "awake");
    drop(stream);
    cloud.becomes("alice", "asleep");
}

#[test]
fn a_changed_site_is_made_anew_and_a_removed_one_leaves_its_files_in_the_bin() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    cloud.get("alice", "");
    cloud.put(
        "alice",
        "index.php",
        "<?php echo getenv('GREETING'), getenv('TOKEN');",
    );
    let secret = cloud.nuage().folder.write("secret", "s3cret\n");
    cloud.nuage().folder.zone(&format!(
        "[sites.alice]\nenvironment = {{ GREETING = \"hi \" }}\nsecrets = {{ TOKEN = \"{}\" }}\n",
        secret.display()
    ));
    until("it has its environment", || {
        cloud.get("alice", "").body == "hi s3cret"
    });

    cloud.nuage().folder.zone("");
    until("its container goes", || cloud.container("alice").is_empty());
    assert!(
        cloud.files("alice").join("index.php").exists(),
        "files stay a while longer"
    );
    let kept = || std::fs::read_dir(cloud.state.join("bin")).map_or(0, Iterator::count);
    let started = std::time::Instant::now();
    while kept() == 0 {
        assert!(started.elapsed().as_secs() < 60, "nothing in the bin");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(!cloud.files("alice").exists());

    // Declared again it is a new site, and its owner may have the old files back.
    cloud
        .nuage()
        .folder
        .zone("[sites.alice]\nenvironment = { GREETING = \"back \" }\n");
    until("a new site", || {
        cloud.get("alice", "").body.contains("<dt>PHP</dt>")
    });
    let restored = cloud.command(&["site", "restore", "alice", "--bin"]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(cloud.get("alice", "").body, "back ");
}

#[test]
fn a_site_awake_is_never_refused_while_others_come_and_go() {
    let cloud = Cloud::start("[sites.alice]\n[sites.bob]\n", IDLE);
    cloud.get("alice", "");
    let load = Load::on(cloud.nuage(), "alice", 2);
    for _ in 0..3 {
        assert_eq!(cloud.get("bob", "").status, 200);
        assert_eq!(cloud.command(&["site", "sleep", "bob"]).code, 0);
        // Told to sleep under load, it wakes again for those who are there.
        assert_eq!(cloud.command(&["site", "restart", "bob"]).code, 0);
        load.goes_on(10);
    }
    assert_eq!(load.stop(), Vec::<String>::new());
}

#[test]
fn a_restart_makes_a_sleeping_site_anew() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    assert_eq!(cloud.get("alice", "").status, 200);
    assert_eq!(cloud.command(&["site", "sleep", "alice"]).code, 0);
    let asleep = cloud.container("alice");
    assert_eq!(cloud.get("alice", "").status, 200);
    assert_eq!(cloud.container("alice"), asleep, "a wake does not");
    for state in ["asleep", "awake"] {
        if state == "asleep" {
            assert_eq!(cloud.command(&["site", "sleep", "alice"]).code, 0);
        }
        let before = cloud.container("alice");
        let ran = cloud.command(&["site", "restart", "alice"]);
        assert!(ran.code == 0 && ran.out.contains("awake"), "{ran:?}");
        assert_ne!(cloud.container("alice"), before, "{state}");
        assert_eq!(cloud.get("alice", "").status, 200);
    }
}
