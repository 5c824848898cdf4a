//! Hostile and clumsy clients: each gets its right answer, and memory stays bounded.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;

use crate::{
    client::{Over, ask, lines},
    harness::{Folder, Nuage, Server, free_port, run, until},
};

fn start(limits: &str) -> Nuage {
    let folder = Folder::new(&format!("[limits]\n{limits}\n"));
    folder.write("www/index.html", "hello");
    folder.zone("[sites.a]\nstatic = \"../www\"\n");
    folder.serve()
}

fn status(answer: &str) -> &str {
    answer.split_whitespace().nth(1).unwrap_or("none")
}

#[test]
fn ambiguous_requests_are_refused() {
    let nuage = start("");
    for (fields, want) in [
        ("Host: a.w.example\r\n", "200"),
        // RFC 9112 §3.2: 400 to a request without Host, with two, or with an invalid one.
        ("", "400"),
        ("Host: a.w.example\r\nHost: a.w.example\r\n", "400"),
        ("Host: a b\r\n", "400"),
        ("Host:\r\n", "400"),
        // RFC 9112 §6.3: both lengths are "an attempt to perform request smuggling".
        (
            "Host: a.w.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "400",
        ),
        (
            "Host: a.w.example\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
            "400",
        ),
        (
            "Host: a.w.example\r\nTransfer-Encoding: identity\r\n",
            "400",
        ),
        // RFC 9112 §5.1: white space before the colon.
        ("Host : a.w.example\r\n", "400"),
        // RFC 9112 §5.2: line folding.
        ("Host: a.w.example\r\nX: a\r\n b\r\n", "400"),
        ("Host: a.w.example\nX: a\r\n", "400"),
    ] {
        let answer =
            nuage.raw(format!("GET / HTTP/1.1\r\n{fields}Connection: close\r\n\r\n").as_bytes());
        assert_eq!(status(&answer), want, "{fields:?}: {answer}");
    }
    for request in [
        "GET /\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET / HTTP/3.7\r\nHost: a.w.example\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a.w.example\r\n\r\n",
    ] {
        let answer = nuage.raw(request.as_bytes());
        assert!(
            matches!(status(&answer), "400" | "405" | "505"),
            "{request:?}: {answer}"
        );
    }
    // HTTP/2 names its host twice too: an authority and a Host that differ (RFC 9113 §8.3.1).
    let url = format!("https://{}/", nuage.https[0]);
    let h2 = |host: &str| {
        let host = format!("host: {host}");
        let arguments = [
            "-nv",
            "--no-verify-peer",
            "-H",
            ":authority: a.w.example",
            "-H",
            &host,
            &url,
        ];
        run("nghttp", &arguments).out
    };
    assert!(
        h2("a.w.example").contains(":status: 200"),
        "{}",
        h2("a.w.example")
    );
    assert!(
        h2("elsewhere.example").contains(":status: 400"),
        "{}",
        h2("elsewhere.example")
    );
}

#[test]
fn a_slow_or_large_head_ends() {
    let nuage = start("header_seconds = 1\nheader_bytes = 8192\n");
    // An octet every 200 ms resets no clock: the deadline is for the whole head.
    let mut stream = TcpStream::connect(nuage.http[0]).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    let mut octets = b"GET / HTTP/1.1\r\nHost: a.w.example\r\nX: "
        .iter()
        .chain(std::iter::repeat(&b'x'));
    while started.elapsed() < Duration::from_secs(10) {
        if stream.write_all(&[*octets.next().unwrap()]).is_err() {
            break;
        }
        let mut some = [0; 4096];
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&some[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(status(&String::from_utf8_lossy(&answer)), "408");

    let before = nuage.resident_kib();
    for _ in 0..20 {
        let mut request = b"GET / HTTP/1.1\r\nHost: a.w.example\r\nX: ".to_vec();
        request.resize(1 << 20, b'x');
        let mut stream = TcpStream::connect(nuage.http[0]).unwrap();
        // The answer may come, and the connection end, before all is sent.
        stream.write_all(&request).unwrap_or_default();
        stream.write_all(b"\r\n\r\n").unwrap_or_default();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_default();
        assert!(answer.is_empty() || status(&answer) == "431", "{answer}");
    }
    let answer = nuage.raw(
        format!(
            "GET / HTTP/1.1\r\nHost: a.w.example\r\nX: {}\r\n\r\n",
            "x".repeat(9_000)
        )
        .as_bytes(),
    );
    assert_eq!(status(&answer), "431");
    let many = "X: y\r\n".repeat(200);
    assert_eq!(
        status(&nuage.raw(format!("GET / HTTP/1.1\r\nHost: a.w.example\r\n{many}\r\n").as_bytes())),
        "431"
    );
    let large = format!("X-Large: {}", "x".repeat(100_000));
    let h2 = nuage.curl("https://a.w.example/", &["--http2", "-H", &large]);
    assert_ne!(h2.status, 200, "{}", h2.head);
    assert!(
        nuage.resident_kib() < before + 8_192,
        "{} KiB, before {before}",
        nuage.resident_kib()
    );
    assert_eq!(nuage.curl("http://a.w.example/", &[]).body, "hello");
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_end() {
    let nuage = start("connections = 12000\nconnections_per_address = 12000\nidle_seconds = 8\n");
    assert_eq!(nuage.curl("http://a.w.example/", &[]).body, "hello");
    let before = nuage.resident_kib();
    // 5,000 that never spoke and 5,000 between two requests.
    let mut connections = Vec::new();
    for number in 0..10_000 {
        let mut stream = TcpStream::connect(nuage.http[0]).unwrap();
        if number % 2 == 1 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: a.w.example\r\n\r\n")
                .unwrap();
            let mut answer = [0; 1024];
            assert!(stream.read(&mut answer).unwrap() > 0);
        }
        connections.push(stream);
    }
    let each = (nuage.resident_kib() - before) as f64 / 10_000.0;
    println!("{each:.2} KiB for each idle connection");
    assert!(each < 6.0, "{each} KiB for each idle connection");
    assert_eq!(
        nuage.curl("http://a.w.example/", &[]).body,
        "hello",
        "others are served meanwhile"
    );
    let mut first = &connections[0];
    first
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(
        first.read(&mut [0; 16]).unwrap(),
        0,
        "an idle connection ends"
    );
    drop(connections);
    until("all are forgotten", || {
        nuage.metrics().contains("nuage_http_connections 0\n")
    });
}

#[test]
fn an_http2_client_that_says_nothing_and_a_dripping_body_end() {
    let port = free_port();
    let sink = "import http.server\nclass H(http.server.BaseHTTPRequestHandler):\n  def do_POST(self):\n    self.rfile.read(int(self.headers['Content-Length'])); self.send_response(200); self.end_headers()\n  def log_message(self, *a): pass\n\
                http.server.ThreadingHTTPServer(('127.0.0.1', PORT), H).serve_forever()\n"
        .replace("PORT", &port.to_string());
    let _sink = Server::start(
        &[("sink.py", &sink)],
        port,
        "/usr/bin/python3",
        &["@DIR@/sink.py"],
    );
    let folder = Folder::new("[limits]\nheader_seconds = 1\nstall_seconds = 2\n");
    folder.zone(&format!(
        "[sites.a]\nupstream = \"http://127.0.0.1:{port}\"\n"
    ));
    let nuage = folder.serve();

    let started = Instant::now();
    let connect = nuage.https[0].to_string();
    // The handshake is done, HTTP/2 is agreed on, and its preface never comes.
    run(
        "sh",
        &[
            "-c",
            &format!(
                "sleep 15 | openssl s_client -quiet -connect {connect} -servername a.w.example -alpn h2 2>&1; true"
            ),
        ],
    );
    until("the silent one is gone", || {
        nuage.metrics().contains("nuage_http_connections 0\n")
    });
    assert!(
        nuage
            .metrics()
            .contains("nuage_http_connections_refused_total{reason=\"slow\"} 1"),
        "{:?}",
        started.elapsed()
    );

    let mut stream = TcpStream::connect(nuage.http[0]).unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: a.w.example\r\nContent-Length: 1000000\r\n\r\n")
        .unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let started = Instant::now();
    let mut answer = Vec::new();
    while started.elapsed() < Duration::from_secs(15) {
        let mut some = [0; 4096];
        match stream.write_all(b"x").and_then(|()| stream.read(&mut some)) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&some[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    let answer = String::from_utf8_lossy(&answer);
    // Its upstream's patience and ours are the same: whichever ends first answers.
    assert!(
        answer.is_empty() || matches!(status(&answer), "408" | "504"),
        "{answer}"
    );
}

#[test]
fn connections_are_limited_in_all_and_by_address() {
    let nuage = start("connections = 50\nconnections_per_address = 10\n");
    let held: Vec<TcpStream> = (0..10)
        .map(|_| TcpStream::connect(nuage.http[0]).unwrap())
        .collect();
    until("ten are in", || {
        nuage.metrics().contains("nuage_http_connections 10\n")
    });
    let mut one_more = TcpStream::connect(nuage.http[0]).unwrap();
    one_more
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert!(
        one_more.read(&mut [0; 1]).is_ok_and(|length| length == 0),
        "closed at once"
    );
    assert_eq!(
        nuage.curl_at(1, "http://a.w.example/", &[]).body,
        "hello",
        "another address is served"
    );
    drop(held);
    until("the places are free again", || {
        nuage.curl("http://a.w.example/", &[]).status == 200
    });
}

#[test]
fn a_request_under_way_outlives_sigterm_and_the_deadline_ends_it() {
    let port = free_port();
    let slow = "import http.server, time\nclass H(http.server.BaseHTTPRequestHandler):\n  def do_GET(self):\n    time.sleep(float(self.path[1:]))\n    self.send_response(200); self.end_headers(); self.wfile.write(b'late')\n  def log_message(self, *a): pass\n\
                http.server.ThreadingHTTPServer(('127.0.0.1', PORT), H).serve_forever()\n"
        .replace("PORT", &port.to_string());
    let _slow = Server::start(
        &[("slow.py", &slow)],
        port,
        "/usr/bin/python3",
        &["@DIR@/slow.py"],
    );
    let start = || {
        let folder = Folder::new("[limits]\ndrain_seconds = 3\n");
        folder.zone(&format!(
            "[sites.slow]\nupstream = \"http://127.0.0.1:{port}\"\n"
        ));
        folder.serve()
    };
    for (seconds, finished) in [("1.5", true), ("60", false)] {
        let mut nuage = start();
        let idle = TcpStream::connect(nuage.http[0]).unwrap();
        std::thread::scope(|scope| {
            let request = scope.spawn(|| {
                run(
                    "curl",
                    &[
                        "-sS",
                        "--max-time",
                        "15",
                        "--resolve",
                        &format!("slow.w.example:{}:127.0.0.1", nuage.http[0].port()),
                        &format!("http://slow.w.example:{}/{seconds}", nuage.http[0].port()),
                    ],
                )
            });
            until("the request is in", || {
                nuage.metrics().contains("nuage_http_connections 2\n")
            });
            std::thread::sleep(Duration::from_millis(200));
            nuage.signal("TERM");
            let request = request.join().unwrap();
            assert_eq!(request.out == "late", finished, "{request:?}");
        });
        let stopped = Instant::now();
        assert_eq!(nuage.ended(), 0);
        assert!(stopped.elapsed() < Duration::from_secs(5));
        drop(idle);
        assert!(
            TcpStream::connect(nuage.http[0]).is_err(),
            "nobody listens any more"
        );
    }
}

#[test]
fn dns_answers_leave_from_the_address_that_was_asked() {
    let folder = Folder::new("");
    let all = std::fs::read_to_string(folder.config()).unwrap().replacen(
        "\"127.0.0.1:0\", \"[::1]:0\"",
        "\"0.0.0.0:0\", \"[::]:0\"",
        1,
    );
    folder.write("nuage.toml", &all);
    folder.zone("[sites.a]\n");
    let nuage = folder.serve();
    let port = nuage.dns.map(|address| address.port());
    for server in [
        SocketAddr::from(([127, 0, 0, 1], port[0])),
        // Routes alone would send this one from 127.0.0.1.
        SocketAddr::from(([127, 0, 0, 7], port[0])),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port[1])),
    ] {
        // `ask` holds the answer's source against the server's address.
        let answer = ask(server, Over::Udp, "a.w.example.", RecordType::A);
        assert_eq!(lines(&answer.answers), ["a.w.example. A 192.0.2.10"]);
    }
}
