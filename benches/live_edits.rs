//! How soon an edit is live in DNS and HTTP, under load, and whether any query or request is lost
//! meanwhile: 200 edits at 1,000 and at 100,000 sites. Ends with exit code 1 when a bound is missed.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench fails by panicking and prints its figures"
)]

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

const EDITS: usize = 200;
/// Nothing takes longer than this and still comes.
const PATIENCE: Duration = Duration::from_secs(30);
const DNS: &str = "127.0.0.1:15353";
const HTTP: &str = "127.0.0.1:18080";

/// Sites, the bound on the 95th percentile of an edit, and that on the start.
const CASES: [(usize, Duration, Duration); 2] = [
    (1_000, Duration::from_millis(50), Duration::from_secs(3)),
    (100_000, Duration::from_secs(1), Duration::from_secs(3)),
];

fn main() -> ExitCode {
    let mut kept = true;
    for (sites, bound, start_bound) in CASES {
        kept &= run(sites, bound, start_bound);
    }
    if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(sites: usize, bound: Duration, start_bound: Duration) -> bool {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("zones")).unwrap();
    let config = format!(
        "[address]\nipv4 = \"192.0.2.10\"\nipv6 = \"2001:db8::10\"\n[paths]\nstate = \"state\"\n[reverse]\nnames = 50\n[dns]\nlisten = [\"{DNS}\"]\n[http]\nlisten = [\"{HTTP}\"]\n[https]\nlisten = []\n[admin]\nlisten = []\n"
    );
    put(&folder.path().join("nuage.toml"), &config);
    let zone = folder.path().join("zones/w.example.toml");
    let mut text = "origin = \"w.example\"\nnameservers = [\"ns1.w.example\"]\n".to_owned();
    for number in 0..sites {
        writeln!(
            text,
            "[sites.site-{number:06}]\nredirect = \"https://www.example/\""
        )
        .unwrap();
    }
    put(&zone, &text);

    // The first start makes serials and authority; the second is the restart that counts.
    drop(Nuage::start(folder.path()));
    let begun = Instant::now();
    let nuage = Nuage::start(folder.path());
    wait(|| resolves("site-000000") && answers("site-000000"));
    let start = begun.elapsed();

    let (ended, queries, requests, lost) = (
        AtomicBool::new(false),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
    );
    let last = format!("site-{:06}", sites - 1);
    let mut times = Vec::with_capacity(EDITS);
    let load = |ask: fn(&str) -> bool, count: &AtomicU64| {
        while !ended.load(Relaxed) {
            count.fetch_add(1, Relaxed);
            if !ask(&last) {
                lost.fetch_add(1, Relaxed);
            }
            // Load, not a flood: the editor and the server share two cores with it.
            thread::sleep(Duration::from_millis(1));
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| load(resolves, &queries));
        scope.spawn(|| load(answers, &requests));
        for edit in 0..EDITS {
            let name = format!("edit-{edit}");
            let beside = zone.with_extension("tmp");
            put(
                &beside,
                &format!("{text}[sites.{name}]\nredirect = \"https://www.example/\"\n"),
            );
            fs::rename(&beside, &zone).unwrap();
            let landed = Instant::now();
            wait(|| resolves(&name));
            wait(|| answers(&name));
            times.push(landed.elapsed());
        }
        ended.store(true, Relaxed);
    });
    times.sort_unstable();
    let p95 = times[EDITS * 95 / 100];
    let lost = lost.load(Relaxed);
    println!(
        "{sites:>7} sites: restart {start:>8.1?} (bound {start_bound:?}); {EDITS} edits live after p50 {:.1?}, p95 {p95:.1?}, max {:.1?} (bound p95 {bound:?}); {} queries and {} requests meanwhile, {lost} lost; {} MiB resident",
        times[EDITS / 2],
        times[EDITS - 1],
        queries.load(Relaxed),
        requests.load(Relaxed),
        nuage.resident_mib(),
    );
    p95 <= bound && start <= start_bound && lost == 0
}

fn put(path: &Path, text: &str) {
    fs::File::create(path)
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
}

fn wait(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "never");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a name of the zone has an address.
fn resolves(label: &str) -> bool {
    let mut question = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for part in [label, "w", "example"] {
        question.push(u8::try_from(part.len()).unwrap());
        question.extend_from_slice(part.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut answer = [0; 512];
    let asked = socket
        .send_to(&question, DNS)
        .and_then(|_| socket.recv(&mut answer));
    asked.is_ok_and(|length| length > question.len() && answer[3] & 0xf == 0 && answer[7] == 1)
}

/// Whether a site redirects, as all of them do.
fn answers(label: &str) -> bool {
    let address: SocketAddr = HTTP.parse().unwrap();
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let asked = write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {label}.w.example\r\nConnection: close\r\n\r\n"
    );
    let mut answer = String::new();
    asked.is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 307")
}

struct Nuage(Child);

impl Nuage {
    fn start(folder: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_nuage"))
            .args(["serve", "--config"])
            .arg(folder.join("nuage.toml"))
            .env("NUAGE_LOG", "error")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let nuage = Self(child);
        wait(|| TcpStream::connect(HTTP).is_ok());
        nuage
    }

    fn resident_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1_024
    }
}

impl Drop for Nuage {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}
