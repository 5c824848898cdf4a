//! Edge and control as two processes: what one can't do, and what the other's end changes.

use std::process::Command;

use super::{Cloud, Load};
use crate::harness::{Nuage, run, until};

/// The user nobody, with nothing but what everybody has.
fn as_nobody() -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
        env!("CARGO_BIN_EXE_nuage"),
    ]);
    command
}

struct Control(std::process::Child);

impl Control {
    fn start(cloud: &Cloud) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_nuage"))
            .args(["serve", "--role", "control", "--config"])
            .arg(&cloud.config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let control = Self(child);
        let socket = cloud.state.join("control.sock");
        until("control listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        control
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

#[test]
fn the_edge_serves_on_without_control_and_has_no_rights() {
    let mut cloud = Cloud::prepare(
        None,
        "[sites.alice]\n[sites.bob]\n",
        "edge_user = \"nobody\"\nadmin = [\"127.0.0.1:0\"]\n",
        "",
    );
    let folder = cloud.folder();
    run("chmod", &["755", folder.path().to_str().unwrap()]);
    let mut control = Control::start(&cloud);
    let mut command = as_nobody();
    // What it is told comes before what the harness adds.
    command.env("NUAGE_LOG", "info");
    let edge = Nuage::of_role(folder, command, "edge");
    cloud.nuage = Some(edge);

    until("alice wakes", || cloud.get("alice", "").status == 200);
    // Over TLS too, by an authority of the edge's own below the one visitors trust.
    assert_eq!(
        cloud.nuage().curl("https://alice.w.example/", &[]).status,
        200
    );
    let pid = cloud.nuage().pid().to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.contains("Uid:\t65534") && status.contains("CapEff:\t0000000000000000"),
        "{status}"
    );
    let denied = |path: &std::path::Path| {
        run(
            "setpriv",
            &[
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "cat",
                path.to_str().unwrap(),
            ],
        )
        .code
            != 0
    };
    assert!(denied(&cloud.state.join("keys/ca.key")));
    assert!(denied(&cloud.state.join("leases.json")));
    let may = |path: &str| {
        let path = cloud.state.join(path);
        run(
            "setpriv",
            &[
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "test",
                "-w",
                path.to_str().unwrap(),
            ],
        )
        .code
            == 0
    };
    assert!(may("edge") && !may("edge-ca") && !may("edge-ca/ca.pem"));
    let open = run("ls", &["-l", &format!("/proc/{pid}/fd")]).out;
    assert!(!open.contains("docker"), "{open}");
    // Its user may ask for wakes, and for nothing else.
    let socket = cloud.state.join("control.sock").display().to_string();
    let ask = |path: &str, method: &str| {
        run(
            "setpriv",
            &[
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-X",
                method,
                "--unix-socket",
                &socket,
                &format!("http://control/v1/{path}"),
            ],
        )
        .out
    };
    assert_eq!(ask("sites/alice.w.example/wake", "POST"), "200");
    for (path, method) in [
        ("sites/alice.w.example/exec?command=%5B%22id%22%5D", "POST"),
        ("sites/alice.w.example/backup", "GET"),
        ("sites/alice.w.example/sleep", "POST"),
        ("sites/alice.w.example/logs", "GET"),
        ("capacity", "GET"),
    ] {
        assert_eq!(ask(path, method), "403", "{path}");
    }

    let load = Load::on(cloud.nuage(), "alice", 2);
    load.goes_on(10);
    for _ in 0..3 {
        control.kill();
        load.goes_on(20);
        // Started again while the load goes on: an upgrade is the same with another binary.
        control = Control::start(&cloud);
        load.goes_on(20);
    }
    control.kill();
    // A new edge knows what was awake, too.
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    assert_eq!(load.stop(), Vec::<String>::new());
    let asleep = cloud
        .nuage()
        .curl("http://bob.w.example/", &["--max-time", "40"]);
    assert_eq!(asleep.status, 503, "nobody can wake it: {asleep:?}");
    let mut old = cloud.nuage.take().unwrap();
    old.kill();
    let folder = old.into_folder();
    cloud.nuage = Some(Nuage::of_role(folder, as_nobody(), "edge"));
    assert_eq!(
        cloud.get("alice", "").status,
        200,
        "from what was kept on disk"
    );
    let _control = Control::start(&cloud);
    until("bob wakes", || cloud.get("bob", "").status == 200);
}
