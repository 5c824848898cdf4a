//! A running nuage on free ports, with a folder of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{linux::net::SocketAddrExt, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long anything local may take before a test says it never will.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const HEAD: &str = "origin = \"w.example\"\nnameservers = [\"ns1.w.example\", \"ns.other.example\"]\nhostmaster = \"host.master@w.example\"\n";

/// A nuage process; killed when dropped.
pub(crate) struct Nuage {
    child: Child,
    pub(crate) folder: Folder,
    /// IPv4 first, then IPv6.
    pub(crate) dns: [SocketAddr; 2],
    /// DNS over TLS; empty unless the configuration listens for it.
    pub(crate) dot: Vec<SocketAddr>,
    pub(crate) http: [SocketAddr; 2],
    pub(crate) https: [SocketAddr; 2],
    pub(crate) admin: SocketAddr,
}

/// A scratch folder with nuage.toml and zones.
pub(crate) struct Folder {
    dir: TempDir,
}

impl Folder {
    /// A configuration on free ports, with more of it in `extra`.
    pub(crate) fn new(extra: &str) -> Self {
        Self::with(&format!("{extra}\n[containers]\nenabled = false\n"))
    }

    /// The same with more of `[dns]`, DNS over TLS among it.
    pub(crate) fn of_dns(dns: &str, extra: &str) -> Self {
        let tls = "tls_listen = [\"127.0.0.1:0\", \"[::1]:0\"]";
        Self::written(
            &format!("{tls}\n{dns}"),
            &format!("{extra}\n[containers]\nenabled = false\n"),
        )
    }

    /// The same where sites run.
    pub(crate) fn with(extra: &str) -> Self {
        Self::written("", extra)
    }

    fn written(dns: &str, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("zones")).unwrap();
        let config = format!(
            "[address]\nipv4 = \"192.0.2.10\"\nipv6 = \"2001:db8::10\"\n[paths]\nstate = \"state\"\n\
             [dns]\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]\n{dns}\n[http]\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]\n\
             [https]\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]\n[admin]\nlisten = [\"127.0.0.1:0\"]\n{extra}"
        );
        let folder = Self { dir };
        folder.write("nuage.toml", &config);
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("nuage.toml")
    }

    /// Writes a file as an editor does: beside it, then in its place.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = path.with_extension("tmp");
        fs::File::create(&beside)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        fs::rename(beside, &path).unwrap();
        path
    }

    /// Writes the zone w.example: the usual head and `body`.
    pub(crate) fn zone(&self, body: &str) {
        self.write("zones/w.example.toml", &format!("{HEAD}{body}"));
    }

    /// Runs nuage with this configuration.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_nuage"))
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .output()
            .unwrap();
        Ran::of(&output)
    }

    pub(crate) fn serve(self) -> Nuage {
        Nuage::spawn(self)
    }
}

/// What a finished program said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs a program of Debian's.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Ran {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    Ran::of(&output.unwrap_or_else(|error| panic!("{program}: {error} (scripts/test installs it)")))
}

impl Nuage {
    /// The zone w.example with this body, nothing else said.
    pub(crate) fn start(body: &str) -> Self {
        let folder = Folder::new("");
        folder.zone(body);
        folder.serve()
    }

    fn spawn(folder: Folder) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nuage"));
        command.arg("serve");
        Self::of(folder, command)
    }

    /// Serves in a role, by a command of its own.
    pub(crate) fn of_role(folder: Folder, mut command: Command, role: &str) -> Self {
        command.args(["serve", "--role", role]);
        Self::of(folder, command)
    }

    fn of(folder: Folder, mut command: Command) -> Self {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.path().join("log"))
            .unwrap();
        let mut child = command
            .arg("--config")
            .arg(folder.config())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut dot = Vec::new();
        let mut addresses = |label: &str| -> Vec<SocketAddr> {
            for line in lines.by_ref() {
                let line = line.unwrap();
                let of = |label: &str| -> Option<Vec<SocketAddr>> {
                    let rest = line.trim().strip_prefix(label)?;
                    let plain = rest.replace("http://", "").replace("/metrics", "");
                    let addresses = plain.split_whitespace();
                    Some(addresses.map(|address| address.parse().unwrap()).collect())
                };
                dot.extend(of("DoT ").unwrap_or_default());
                if let Some(found) = of(label) {
                    return found;
                }
            }
            let log = fs::read_to_string(folder.path().join("log")).unwrap();
            panic!("nuage ended before it said {label}: {log}");
        };
        let pair =
            |addresses: Vec<SocketAddr>| -> [SocketAddr; 2] { addresses.try_into().unwrap() };
        let (dns, http, https) = (
            pair(addresses("DNS ")),
            pair(addresses("HTTP ")),
            pair(addresses("HTTPS ")),
        );
        let admin = addresses("admin ")[0];
        // What follows must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            folder,
            dns,
            dot,
            http,
            https,
            admin,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        assert_eq!(run("kill", &["-s", name, &self.pid().to_string()]).code, 0);
    }

    /// The folder, for another to serve from.
    pub(crate) fn into_folder(mut self) -> Folder {
        self.kill();
        std::mem::replace(&mut self.folder, Folder::new(""))
    }

    /// Ends the process at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }

    /// Waits for the process to end by itself; its exit code.
    pub(crate) fn ended(&mut self) -> i32 {
        let mut code = None;
        until("nuage ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|status| status.code()).unwrap_or(-1)
    }

    /// The local authority's certificate as a file.
    pub(crate) fn ca(&self) -> String {
        self.folder
            .path()
            .join("state/keys/ca.pem")
            .display()
            .to_string()
    }

    /// curl a URL of a host of ours, at its real port by `--resolve`.
    pub(crate) fn curl(&self, url: &str, more: &[&str]) -> Response {
        self.curl_at(0, url, more)
    }

    /// The same at the IPv4 (0) or IPv6 (1) address.
    pub(crate) fn curl_at(&self, family: usize, url: &str, more: &[&str]) -> Response {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (host, path) = rest.split_once('/').unwrap();
        let address = if scheme == "https" {
            self.https[family]
        } else {
            self.http[family]
        };
        let ip = address.ip().to_string();
        let resolve = format!("{host}:{}:{ip}", address.port());
        let url = format!("{scheme}://{host}:{}/{path}", address.port());
        let ca = self.ca();
        let mut arguments = vec![
            "-sS",
            "-i",
            "--max-time",
            "20",
            "--resolve",
            &resolve,
            "--cacert",
            &ca,
            &url,
        ];
        arguments.extend(more);
        Response::of(run("curl", &arguments))
    }

    /// Speaks HTTP in clear, octet by octet: sends, and reads until the end or the deadline.
    pub(crate) fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.http[0]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A reset after the answer is an end too.
        stream.read_to_end(&mut answer).unwrap_or_default();
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn metrics(&self) -> String {
        run("curl", &["-sS", &format!("http://{}/metrics", self.admin)]).out
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Nuage {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What curl got: `status` is 0 when there was no answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) exit: i32,
}

impl Response {
    fn of(ran: Ran) -> Self {
        // Interim answers (100 Continue) come first.
        let mut text = ran.out.as_str();
        while let Some(rest) = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
            text = rest;
        }
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head
            .split_whitespace()
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0);
        Self {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
            exit: ran.code,
        }
    }

    /// A header's value, by its name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| {
            line.split_once(':')
                .is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
        })?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

/// The processor time a process has used, in ticks of ten milliseconds.
pub(crate) fn cpu(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Waits for something to become true.
pub(crate) fn until(what: &str, done: impl FnMut() -> bool) {
    until_within(PATIENCE, what, done);
}

pub(crate) fn until_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < patience, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port for one server of this test, of TCP and UDP: below those the system hands out by itself
/// (to clients, and to whoever listens on port 0), and claimed against the tests beside this one
/// until this one ends.
pub(crate) fn free_port() -> u16 {
    static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let mut claims = CLAIMS.lock().unwrap();
    for port in 20_000..32_000 {
        let name = format!("nuage-test-port-{port}");
        let name = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let Ok(claim) = UnixListener::bind_addr(&name) else {
            continue;
        };
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            claims.push(claim);
            return port;
        }
    }
    panic!("no port between 20,000 and 32,000 is free");
}

/// A server of Debian's, killed when dropped.
pub(crate) struct Server {
    child: Child,
    _folder: TempDir,
}

impl Server {
    /// Starts a program in a scratch folder of files and waits for its port.
    pub(crate) fn start(
        files: &[(&str, &str)],
        port: u16,
        program: &str,
        arguments: &[&str],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Servers that drop root still have to read their files.
        run("chmod", &["755", folder.path().to_str().unwrap()]);
        for (name, text) in files {
            let text = text.replace("@DIR@", folder.path().to_str().unwrap());
            fs::File::create(folder.path().join(name))
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
        }
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(
                arguments
                    .iter()
                    .map(|argument| argument.replace("@DIR@", folder.path().to_str().unwrap())),
            )
            .current_dir(folder.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error} (scripts/test installs it)"));
        let server = Self {
            child,
            _folder: folder,
        };
        until(&format!("{program} listens"), || {
            let log = || fs::read_to_string(server._folder.path().join("log")).unwrap_or_default();
            let alive = fs::metadata(format!("/proc/{}/fd", server.child.id())).is_ok();
            assert!(alive, "{program} ended: {}", log());
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Politely, for those with children of their own.
        run("kill", &[&self.child.id().to_string()]);
        self.child.wait().map(drop).unwrap_or_default();
    }
}
