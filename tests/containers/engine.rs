//! An engine of a test's own, which may be restarted or speak TLS.

use super::free_net;
use crate::harness::{run, until};

/// A second engine, killed when dropped.
pub(super) struct Engine {
    folder: tempfile::TempDir,
    child: Option<std::process::Child>,
    bridge: String,
    /// Whose number is in its subnet.
    _net: std::fs::File,
    options: Vec<String>,
}

impl Engine {
    pub(super) fn start(options: &[&str]) -> Self {
        let (net, held) = free_net();
        let mut engine = Self {
            folder: tempfile::tempdir().unwrap(),
            child: None,
            bridge: format!("nub{}", std::process::id()),
            _net: held,
            options: options.iter().map(ToString::to_string).collect(),
        };
        let address = format!("172.31.{net}.1/24");
        let bridge = &engine.bridge;
        let made = run(
            "sh",
            &[
                "-c",
                &format!(
                    "ip link add {bridge} type bridge && ip addr add {address} dev {bridge} && ip link set {bridge} up"
                ),
            ],
        );
        assert_eq!(made.code, 0, "{made:?}");
        engine.run();
        let copied = run(
            "sh",
            &[
                "-c",
                &format!(
                    "docker save nuage-php:8.2 | docker -H unix://{} load",
                    engine.socket()
                ),
            ],
        );
        assert_eq!(copied.code, 0, "{copied:?}");
        engine
    }

    pub(super) fn socket(&self) -> String {
        self.folder.path().join("docker.sock").display().to_string()
    }

    fn run(&mut self) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(at("log"))
            .unwrap();
        std::fs::File::create(at("empty.json"))
            .map(|mut file| std::io::Write::write_all(&mut file, b"{}"))
            .unwrap()
            .unwrap();
        let child = std::process::Command::new("dockerd")
            .args([
                "--data-root",
                &at("data"),
                "--exec-root",
                &at("exec"),
                "-p",
                &at("pid"),
                "-H",
                &format!("unix://{}", self.socket()),
            ])
            // The other engine keeps its bridge and the rules of this machine.
            .args([
                "--bridge",
                &self.bridge,
                "--iptables=false",
                "--config-file",
                &at("empty.json"),
            ])
            .args(&self.options)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let socket = format!("unix://{}", self.socket());
        until("the engine starts", || {
            run("docker", &["-H", &socket, "version"]).code == 0
        });
    }

    pub(super) fn restart(&mut self) {
        self.end();
        self.run();
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            run("kill", &[&child.id().to_string()]);
            child.wait().unwrap();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
        // What live-restore leaves behind is ours to end: its containerd and shims.
        let exec = self.folder.path().join("exec").display().to_string();
        for name in ["containerd/containerd.pid"] {
            if let Ok(pid) = std::fs::read_to_string(format!("{exec}/{name}")) {
                run("kill", &[pid.trim()]);
            }
        }
        let folder = self.folder.path().to_str().unwrap();
        run("ip", &["link", "del", &self.bridge]);
        run(
            "sh",
            &[
                "-c",
                &format!("grep -o ' {folder}[^ ]*' /proc/mounts | sort -r | xargs -r umount -l"),
            ],
        );
    }
}
