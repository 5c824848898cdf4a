//! Sites in real containers of a real engine. As root; `scripts/test` starts the engine and builds
//! the standard image.

mod app;
mod control;
mod disk;
mod engine;
mod faults;
mod life;
mod remote;
mod walls;

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use crate::harness::{Folder, Nuage, Ran, Response, run, until};

/// A nuage whose sites run, with networks no other test has. Everything it made is gone when it is
/// dropped, by `nuage uninstall`.
pub(crate) struct Cloud {
    pub(crate) nuage: Option<Nuage>,
    config: PathBuf,
    pub(crate) state: PathBuf,
    /// The second octet of its networks.
    pub(crate) net: u8,
    _net: fs::File,
    engine: Option<String>,
    _folder: Option<Folder>,
}

/// The lowest number no other test holds, and what holds it.
fn free_net() -> (u8, fs::File) {
    (0..100)
        .find_map(|number: u8| {
            let path = std::env::temp_dir().join(format!("nuage-test-net-{number}"));
            let file = fs::File::create(path).unwrap();
            file.try_lock().ok().map(|()| (100 + number, file))
        })
        .expect("a free network number")
}

impl Cloud {
    /// Sites of the zone w.example, with more of nuage.toml in `extra`.
    pub(crate) fn start(sites: &str, extra: &str) -> Self {
        Self::at(None, sites, "", extra)
    }

    /// The same on an engine of its own, with more of `[containers]`, which may say how it is reached.
    pub(crate) fn at(engine: Option<&str>, sites: &str, containers: &str, extra: &str) -> Self {
        let mut cloud = Self::prepare(engine, sites, containers, extra);
        let folder = cloud._folder.take().unwrap();
        cloud.nuage = Some(folder.serve());
        cloud.ready();
        cloud
    }

    /// Files alone, nothing serves yet.
    pub(crate) fn prepare(
        engine: Option<&str>,
        sites: &str,
        containers: &str,
        extra: &str,
    ) -> Self {
        let (net, held) = free_net();
        let socket = engine
            .filter(|_| !containers.contains("engine ="))
            .map_or_else(String::new, |socket| {
                format!("engine = \"unix://{socket}\"\n")
            });
        let folder = Folder::with(&format!(
            "[containers]\nsubnet4 = \"10.{net}.0.0/16\"\nsubnet6 = \"fd00:{net}::/48\"\n{socket}{containers}\n{extra}"
        ));
        folder.zone(sites);
        Self {
            nuage: None,
            config: folder.config(),
            state: folder.path().join("state"),
            net,
            _net: held,
            engine: engine.map(|socket| format!("unix://{socket}")),
            _folder: Some(folder),
        }
    }

    pub(crate) fn folder(&mut self) -> Folder {
        self._folder.take().unwrap()
    }

    pub(crate) fn ready(&self) {
        let nuage = self.nuage.as_ref().unwrap();
        until("the engine answers", || {
            nuage.log().contains("the engine answers")
        });
    }

    pub(crate) fn nuage(&self) -> &Nuage {
        self.nuage.as_ref().unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Ran {
        let mut all = vec!["--config", self.config.to_str().unwrap()];
        all.extend(arguments);
        run(env!("CARGO_BIN_EXE_nuage"), &all)
    }

    pub(crate) fn get(&self, site: &str, path: &str) -> Response {
        self.nuage().curl(
            &format!("http://{site}.w.example/{path}"),
            &["--max-time", "60"],
        )
    }

    pub(crate) fn state_of(&self, site: &str) -> String {
        let stats = self
            .command(&["--format", "json", "site", "stats", site])
            .json();
        stats[0]["state"].as_str().unwrap_or("archived").to_owned()
    }

    pub(crate) fn becomes(&self, site: &str, state: &str) {
        until(&format!("{site} is {state}"), || {
            self.state_of(site) == state
        });
    }

    /// Puts a file among a site's own, as its owner would.
    pub(crate) fn put(&self, site: &str, name: &str, text: &str) {
        let path = self.files(site).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("new");
        std::io::Write::write_all(&mut fs::File::create(&beside).unwrap(), text.as_bytes())
            .unwrap();
        fs::rename(beside, path).unwrap();
    }

    pub(crate) fn files(&self, site: &str) -> PathBuf {
        self.state.join("sites/w.example").join(site).join("files")
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Ran {
        let engine = self
            .engine
            .as_deref()
            .unwrap_or("unix:///var/run/docker.sock");
        let mut all = vec!["-H", engine];
        all.extend(arguments);
        run("docker", &all)
    }

    pub(crate) fn instance(&self) -> String {
        let text = fs::read_to_string(self.state.join("leases.json")).unwrap();
        let leases: serde_json::Value = serde_json::from_str(&text).unwrap();
        leases["instance"].as_str().unwrap().to_owned()
    }

    /// The id of a site's container; empty when it has none.
    pub(crate) fn container(&self, site: &str) -> String {
        let name = format!("name=^nuage-{}-{site}.w.example$", self.instance());
        self.docker(&["ps", "-aq", "--no-trunc", "--filter", &name])
            .out
            .trim()
            .to_owned()
    }

    /// A value of the engine's description of a site's container.
    pub(crate) fn inspect(&self, site: &str, template: &str) -> String {
        self.docker(&["inspect", "-f", template, &self.container(site)])
            .out
            .trim()
            .to_owned()
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.nuage().metrics();
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit_once(' '))
            .map_or(0.0, |(_, value)| value.parse().unwrap())
    }

    /// Ends everything; what the engine, the kernel and the system still hold of it.
    pub(crate) fn uninstall(&mut self) -> String {
        if let Some(nuage) = &mut self.nuage {
            nuage.kill();
        }
        if !self.state.join("leases.json").exists() {
            return String::new();
        }
        let removed = self.command(&["uninstall"]);
        assert_eq!(removed.code, 0, "{removed:?}");
        self.left()
    }

    fn left(&self) -> String {
        let instance = self.instance();
        let label = format!("label=nuage.instance={instance}");
        let mut left = self.docker(&["ps", "-aq", "--filter", &label]).out;
        left += &self
            .docker(&["network", "ls", "-q", "--filter", &label])
            .out;
        let tables = run("nft", &["list", "tables"]).out;
        left.extend(tables.lines().filter(|line| line.contains(&instance)));
        let state = self.state.to_str().unwrap();
        for text in [
            run("losetup", &["-a"]).out,
            fs::read_to_string("/proc/mounts").unwrap(),
        ] {
            left.extend(text.lines().filter(|line| line.contains(state)));
        }
        left
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(nuage) = &self.nuage {
                eprintln!("{}", nuage.log());
            }
            self.uninstall();
        } else {
            let mut left = self.uninstall();
            // A loop device goes with its last user, and a namespace another test has just made may
            // still hold the mount.
            for _ in 0..100 {
                if left.is_empty() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(200));
                left = self.left();
            }
            panic!("something is left: {left}");
        }
    }
}

/// Somebody who asks for one page again and again, and counts what is not 200.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub(crate) fn on(nuage: &Nuage, site: &str, threads: usize) -> Self {
        let (stop, asked) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let address = nuage.http[0];
        let start = |_| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            let (host, url) = (
                format!("Host: {site}.w.example"),
                format!("http://{address}/"),
            );
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Relaxed) {
                    let output = Command::new("curl")
                        .args([
                            "-s",
                            "-o",
                            "/dev/null",
                            "-w",
                            "%{http_code} %{time_total} %{errormsg}",
                            "--max-time",
                            "60",
                            "-H",
                            &host,
                            &url,
                        ])
                        .output()
                        .unwrap();
                    let said = String::from_utf8_lossy(&output.stdout).into_owned();
                    asked.fetch_add(1, Relaxed);
                    if !said.starts_with("200 ") {
                        failures.push(said);
                    }
                }
                failures
            })
        };
        let threads = (0..threads).map(start).collect();
        Self {
            stop,
            asked,
            threads,
        }
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    /// Waits for so many more requests.
    pub(crate) fn goes_on(&self, more: usize) {
        let from = self.asked();
        until("requests are answered", || self.asked() >= from + more);
    }

    /// What was not answered with 200.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    }
}
