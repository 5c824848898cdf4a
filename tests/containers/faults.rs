//! What goes wrong: images that are missing, programs that end or never listen, containers killed
//! from outside, an engine that is restarted.

use super::{Cloud, Load, engine::Engine};
use crate::harness::{run, until};

#[test]
fn a_missing_image_is_told_with_its_cure() {
    let cloud = Cloud::start("[sites.alice]\nimage = \"no-such-image:1\"\n", "");
    let page = cloud.get("alice", "");
    assert_eq!(page.status, 503, "{page:?}");
    assert!(
        page.body.contains("does not start") && !page.body.contains("no-such-image"),
        "{page:?}"
    );
    let woken = cloud.command(&["site", "wake", "alice"]);
    assert_eq!(woken.code, 1);
    assert!(
        woken.err.contains("no image no-such-image:1") && woken.err.contains("images/php/build"),
        "{woken:?}"
    );
    cloud.nuage().folder.zone("[sites.alice]\n");
    until("it runs", || cloud.get("alice", "").status == 200);
}

#[test]
fn a_missing_command_is_told_and_left_alone() {
    let cloud = Cloud::start("[sites.alice]\ncommand = [\"/no/such/program\"]\n", "");
    until("it is left alone", || {
        assert_eq!(cloud.get("alice", "").status, 503);
        cloud.state_of("alice") == "crashed"
    });
    let stats = cloud.command(&["site", "stats", "alice"]);
    assert!(stats.out.contains("/no/such/program"), "{stats:?}");
}

#[test]
fn trouble_that_is_not_the_sites_is_over_when_it_is_over() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    let folder = cloud.state.join("sites/w.example");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::File::create(folder.join("alice")).unwrap();
    for _ in 0..6 {
        assert_eq!(cloud.get("alice", "").status, 503);
    }
    let trouble = || cloud.command(&["site", "stats", "alice"]).out;
    let why = "can't make the site's files ready";
    assert!(trouble().contains(why), "{}", trouble());
    assert_ne!(cloud.state_of("alice"), "crashed");
    std::fs::remove_file(folder.join("alice")).unwrap();
    // It is tried every 8 seconds by now.
    until("it is served", || cloud.get("alice", "").status == 200);
    assert!(!trouble().contains(why), "{}", trouble());

    // Nor does that of a declaration outlast it.
    let zone = |text: &str| cloud.nuage().folder.zone(text);
    zone("[sites.alice]\nsecrets = { TOKEN = \"missing\" }\n");
    until("it is told", || trouble().contains("the secret TOKEN"));
    assert_eq!(cloud.get("alice", "").status, 200, "what runs goes on");
    zone("[sites.alice]\n");
    until("it is over", || !trouble().contains("the secret TOKEN"));
}

#[test]
fn a_container_that_never_listens_is_given_up() {
    let cloud = Cloud::start(
        "[sites.deaf]\ncommand = [\"sleep\", \"1000\"]\n",
        "[groups.default]\nready_within = \"2s\"\n",
    );
    assert_eq!(cloud.get("deaf", "").status, 503);
    let stats = cloud.command(&["site", "stats", "deaf"]);
    assert!(
        stats.out.contains("nothing listens on port 8080"),
        "{stats:?}"
    );
    until("it is ended", || {
        cloud.inspect("deaf", "{{.State.Running}}") == "false"
    });
}

#[test]
fn a_crash_loop_ends_and_shows_the_last_lines() {
    let cloud = Cloud::start(
        "[sites.mad]\ncommand = [\"sh\", \"-c\", \"echo the reason is $((6*7)); exit 3\"]\n",
        "",
    );
    until("it is left alone", || {
        cloud.get("mad", "");
        cloud.state_of("mad") == "crashed"
    });
    let stats = cloud.command(&["site", "stats", "mad"]);
    assert!(
        stats.out.contains("ended at once") && stats.out.contains("the reason is 42"),
        "{stats:?}"
    );
    let started = cloud.inspect("mad", "{{.State.StartedAt}}");
    assert_eq!(cloud.get("mad", "").status, 503);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(
        cloud.inspect("mad", "{{.State.StartedAt}}"),
        started,
        "not tried again"
    );
    // Its owner mends it.
    cloud.nuage().folder.zone("[sites.mad]\n");
    until("it runs", || cloud.get("mad", "").status == 200);
}

#[test]
fn killed_and_removed_from_outside_it_comes_back_for_who_looks() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    cloud.get("alice", "");
    for deed in [vec!["kill"], vec!["rm", "-f"], vec!["pause"]] {
        let id = cloud.container("alice");
        let mut arguments = deed.clone();
        arguments.push(&id);
        assert_eq!(cloud.docker(&arguments).code, 0);
        until(&format!("it answers after {deed:?}"), || {
            cloud.get("alice", "").status == 200
        });
    }
    // Under load nobody gets an error page for longer than it takes to start again.
    let load = Load::on(cloud.nuage(), "alice", 2);
    load.goes_on(10);
    assert_eq!(cloud.docker(&["kill", &cloud.container("alice")]).code, 0);
    std::thread::sleep(std::time::Duration::from_secs(3));
    load.goes_on(10);
    let failures = load.stop();
    // Those in the middle of an answer, at most one for each who asks.
    assert!(failures.len() <= 2, "{failures:?}");
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let cloud = Cloud::start("[sites.alice]\n", "");
    let name = format!("stranger-{}", cloud.net);
    let made = run(
        "docker",
        &[
            "run",
            "-d",
            "--rm",
            "--name",
            &name,
            "--label",
            "nuage.instance=ffffff",
            "--label",
            "nuage.site=alice.w.example",
            "--entrypoint",
            "sleep",
            "nuage-php:8.2",
            "600",
        ],
    );
    assert_eq!(made.code, 0, "{made:?}");
    cloud.get("alice", "");
    cloud.nuage().folder.zone("");
    until("ours goes", || cloud.container("alice").is_empty());
    let state = run("docker", &["inspect", "-f", "{{.State.Running}}", &name]).out;
    run("docker", &["rm", "-f", &name]);
    assert_eq!(state.trim(), "true");
}

#[test]
fn the_engine_restarted_under_load() {
    for live_restore in [true, false] {
        let mut engine = Engine::start(&[&format!("--live-restore={live_restore}")]);
        let socket = engine.socket();
        let cloud = Cloud::at(Some(&socket), "[sites.alice]\n[sites.bob]\n", "", "");
        assert_eq!(cloud.get("alice", "").status, 200);
        let before = cloud.inspect("alice", "{{.State.StartedAt}}");
        let load = Load::on(cloud.nuage(), "alice", 2);
        load.goes_on(10);
        let restarted = std::time::Instant::now();
        engine.restart();
        until("it answers", || cloud.get("alice", "").status == 200);
        let away = restarted.elapsed().as_secs();
        load.goes_on(10);
        let failures = load.stop();
        if live_restore {
            assert_eq!(failures, Vec::<String>::new());
            until("it is adopted", || {
                cloud.inspect("alice", "{{.State.StartedAt}}") == before
            });
        } else {
            // Its containers end with it: some requests find nobody who could wake the site. Each of
            // the two who ask is held for a while before it is told so.
            let most = 2 * (away * 2 + 2);
            assert!(failures.len() as u64 <= most, "{away} s: {failures:?}");
        }
        let load = Load::on(cloud.nuage(), "alice", 2);
        load.goes_on(10);
        assert_eq!(load.stop(), Vec::<String>::new());
        until("a sleeping site wakes again", || {
            cloud.get("bob", "").status == 200
        });
        assert_eq!(cloud.get("alice", "").status, 200);
        drop(cloud);
    }
}
