//! The edge as browsers and programs see it: sites, files, upstreams, redirects, pages.

use std::{fs, os::unix::fs::symlink};

use crate::harness::{Folder, Nuage, Server, free_port, run, until};

/// A site of files, with a folder to put them in.
fn with_files(body: &str) -> Nuage {
    let folder = Folder::new("");
    folder.write("www/index.html", "<h1>files</h1>\n");
    folder.write("www/sub/index.html", "sub\n");
    folder.write("www/ten.txt", "0123456789");
    folder.zone(&format!("[sites.files]\nstatic = \"../www\"\naliases = [\"f\"]\ndomains = [\"www.foreign.example\"]\n{body}"));
    folder.serve()
}

#[test]
fn a_static_site_over_every_transport() {
    let nuage = with_files("");
    for family in [0, 1] {
        for scheme in ["http", "https"] {
            for version in ["--http1.1", "--http2"] {
                // HTTP/2 in clear is not offered.
                if (scheme, version) == ("http", "--http2") {
                    continue;
                }
                for host in ["files.w.example", "f.w.example", "www.foreign.example"] {
                    let got = nuage.curl_at(family, &format!("{scheme}://{host}/"), &[version]);
                    assert_eq!(
                        (got.status, &*got.body),
                        (200, "<h1>files</h1>\n"),
                        "{scheme} {host} {got:?}"
                    );
                    assert_eq!(got.header("content-type"), Some("text/html; charset=utf-8"));
                    assert_eq!(got.head.starts_with("HTTP/2"), version == "--http2");
                }
            }
        }
    }
    let upper = nuage.curl("http://files.w.example/", &["-H", "Host: FILES.W.Example."]);
    assert_eq!(upper.status, 200);
}

#[test]
fn ranges_conditions_and_codings() {
    let nuage = with_files("");
    let get = |more: &[&str]| nuage.curl("http://files.w.example/ten.txt", more);
    let whole = get(&[]);
    assert_eq!((whole.status, &*whole.body), (200, "0123456789"));
    let (tag, date) = (
        whole.header("etag").unwrap(),
        whole.header("last-modified").unwrap(),
    );
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));

    let part = get(&["-r", "2-4"]);
    assert_eq!(
        (part.status, &*part.body, part.header("content-range")),
        (206, "234", Some("bytes 2-4/10"))
    );
    assert_eq!(get(&["-r", "-3"]).body, "789");
    let past = get(&["-r", "10-"]);
    assert_eq!(
        (past.status, past.header("content-range")),
        (416, Some("bytes */10"))
    );
    let parts = get(&["-r", "0-1,8-9"]);
    assert_eq!(parts.status, 206);
    let boundary = parts
        .header("content-type")
        .unwrap()
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    assert_eq!(parts.body.matches(boundary).count(), 3);
    assert!(
        parts
            .body
            .contains("Content-Range: bytes 8-9/10\r\n\r\n89\r\n"),
        "{}",
        parts.body
    );
    assert_eq!(
        parts
            .header("content-length")
            .unwrap()
            .parse::<usize>()
            .unwrap(),
        parts.body.len()
    );

    let same = get(&["-H", &format!("If-None-Match: {tag}")]);
    assert_eq!((same.status, &*same.body), (304, ""));
    assert_eq!(
        get(&["-H", &format!("If-Modified-Since: {date}")]).status,
        304
    );
    assert_eq!(get(&["-H", "If-Match: \"other\""]).status, 412);
    assert_eq!(get(&["-r", "0-1", "-H", "If-Range: \"other\""]).status, 200);
    assert_eq!(
        get(&["-r", "0-1", "-H", &format!("If-Range: {tag}")]).status,
        206
    );

    let head = nuage.curl("http://files.w.example/ten.txt", &["-I"]);
    assert_eq!(
        (head.status, head.header("content-length"), &*head.body),
        (200, Some("10"), "")
    );
    let post = nuage.curl("http://files.w.example/ten.txt", &["-d", "x"]);
    assert_eq!(
        (post.status, post.header("allow")),
        (405, Some("GET, HEAD"))
    );

    // A precompressed sibling is preferred by those who accept it, unless it is of an older content.
    let www = nuage.folder.path().join("www");
    assert_eq!(
        run("gzip", &["-k", www.join("ten.txt").to_str().unwrap()]).code,
        0
    );
    let squeezed = get(&["-H", "Accept-Encoding: gzip, br"]);
    assert_eq!(
        (squeezed.header("content-encoding"), squeezed.header("vary")),
        (Some("gzip"), Some("Accept-Encoding"))
    );
    assert_eq!(
        squeezed.header("content-type"),
        whole.header("content-type")
    );
    assert_ne!(squeezed.header("etag"), Some(tag));
    assert_eq!(get(&["--compressed"]).body, "0123456789");
    let plain = get(&[]);
    assert_eq!(
        (plain.header("content-encoding"), plain.header("vary")),
        (None, Some("Accept-Encoding"))
    );
    assert_eq!(
        run(
            "touch",
            &["-d", "now + 1 hour", www.join("ten.txt").to_str().unwrap()]
        )
        .code,
        0
    );
    assert_eq!(
        get(&["-H", "Accept-Encoding: gzip"]).header("content-encoding"),
        None
    );
}

#[test]
fn folders_and_what_lies_outside_them() {
    let nuage = with_files("");
    let www = nuage.folder.path().join("www");
    nuage.folder.write("secret.txt", "secret");
    nuage.folder.write("www/.env", "secret");
    symlink("../secret.txt", www.join("up")).unwrap();
    symlink("/etc/passwd", www.join("passwd")).unwrap();
    symlink("ten.txt", www.join("inner")).unwrap();
    fs::create_dir(www.join("empty")).unwrap();
    assert_eq!(run("mkfifo", &[www.join("fifo").to_str().unwrap()]).code, 0);
    let get = |path: &str| nuage.curl(&format!("http://files.w.example/{path}"), &["--path-as-is"]);
    for path in [
        "../secret.txt",
        "%2e%2e/secret.txt",
        "sub/../../secret.txt",
        "..%2fsecret.txt",
        "up",
        "passwd",
        ".env",
        "empty/",
        "fifo",
        "ten.txt/",
        "none",
        "a%00b",
    ] {
        let got = get(path);
        assert_eq!(got.status, 404, "{path}");
        assert!(
            !got.body.contains("secret") && !got.body.contains("root:"),
            "{path}"
        );
    }
    assert_eq!(get("inner").body, "0123456789");
    assert_eq!(get("sub/").body, "sub\n");
    let slash = get("sub?a=b");
    assert_eq!(
        (slash.status, slash.header("location")),
        (308, Some("/sub/?a=b"))
    );
    // Nothing that a browser would read as another host.
    let double = get("//sub");
    assert!(
        double
            .header("location")
            .is_none_or(|to| !to.starts_with("//")),
        "{double:?}"
    );
    // A large file comes whole.
    let large = "x".repeat(3_000_000);
    nuage.folder.write("www/large", &large);
    assert_eq!(get("large").body.len(), large.len());
    assert_eq!(
        nuage.curl("https://files.w.example/large", &[]).body.len(),
        large.len()
    );
}

#[test]
fn pages_for_people_and_programs() {
    let nuage = with_files("[sites.empty]\n[sites.down]\nupstream = \"http://127.0.0.1:9\"\n");
    let stranger = nuage.curl("http://nobody.w.example/", &[]);
    assert_eq!(stranger.status, 404);
    assert!(
        stranger.body.contains("No site has this name")
            && stranger.body.contains("nobody.w.example")
    );
    let french = nuage.curl(
        "http://elsewhere.example/",
        &["-H", "Accept-Language: fr-FR, en;q=0.5"],
    );
    assert!(
        french.status == 404 && french.body.contains("Aucun site"),
        "{french:?}"
    );
    assert_eq!(french.header("content-language"), Some("fr"));
    let program = nuage.curl(
        "http://nobody.w.example/",
        &["-H", "Accept: application/json"],
    );
    assert_eq!(
        program.header("content-type"),
        Some("application/problem+json")
    );
    assert!(serde_json::from_str::<serde_json::Value>(&program.body).unwrap()["status"] == 404);

    let asleep = nuage.curl("http://empty.w.example/", &[]);
    assert_eq!(
        (asleep.status, asleep.header("retry-after")),
        (503, Some("10"))
    );
    let down = nuage.curl("http://down.w.example/", &[]);
    assert_eq!(down.status, 502);
    assert!(down.body.contains("does not answer"));
    assert_eq!(nuage.curl("http://down.w.example/", &["-I"]).body, "");
}

#[test]
fn redirects() {
    let nuage = with_files(
        "https = \"redirect\"\n[sites.old]\nredirect = \"https://new.example/base/\"\n[sites.fixed]\nredirect = \"https://new.example/page\"\n",
    );
    let to_https = nuage.curl("http://files.w.example/a?b=c", &[]);
    let want = format!("https://files.w.example:{}/a?b=c", nuage.https[0].port());
    assert_eq!(
        (to_https.status, to_https.header("location")),
        (308, Some(&*want))
    );
    assert_eq!(nuage.curl("https://files.w.example/", &[]).status, 200);
    let old = nuage.curl("http://old.w.example/a/b?c=d", &[]);
    assert_eq!(
        (old.status, old.header("location")),
        (307, Some("https://new.example/base/a/b?c=d"))
    );
    let fixed = nuage.curl("http://fixed.w.example/a", &["-X", "POST", "-d", "x"]);
    assert_eq!(
        (fixed.status, fixed.header("location")),
        (307, Some("https://new.example/page"))
    );
}

const NGINX: &str = "daemon off; pid @DIR@/pid; error_log stderr; worker_processes 1; events {}\n\
http { access_log off; client_body_temp_path @DIR@; proxy_temp_path @DIR@; fastcgi_temp_path @DIR@; uwsgi_temp_path @DIR@; scgi_temp_path @DIR@;\n\
  server { listen 127.0.0.1:@PORT@; listen unix:@SOCKET@;\n\
    location /echo { default_type text/plain; return 200 \"$request_method $request_uri $http_host|$http_x_forwarded_for|$http_x_forwarded_proto|$http_x_forwarded_host|$http_forwarded|$http_x_real_ip|$http_te|$http_x_hop|$http_via\\n\"; }\n\
    location /slow { limit_rate 1k; root @DIR@; }\n\
    location / { root @DIR@; } } }\n";

#[test]
fn upstreams_over_tcp_and_unix_sockets() {
    let port = free_port();
    let folder = Folder::new("[limits]\nbody_bytes = 100000\nstall_seconds = 3\n");
    // Reads and never answers, as nginx does not.
    let reader = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reads = reader.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in reader.incoming().flatten() {
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or_default();
        }
    });
    let socket = folder.path().join("up.sock");
    let config = NGINX
        .replace("@PORT@", &port.to_string())
        .replace("@SOCKET@", socket.to_str().unwrap());
    let _nginx = Server::start(
        &[("nginx.conf", &config), ("page", "from nginx")],
        port,
        "nginx",
        &["-p", "@DIR@", "-e", "stderr", "-c", "@DIR@/nginx.conf"],
    );
    folder.zone(&format!(
        "[sites.tcp]\nupstream = \"http://127.0.0.1:{port}\"\n[sites.named]\nupstream = \"http://localhost:{port}\"\n[sites.unix]\nupstream = \"unix:{}\"\n[sites.reader]\nupstream = \"http://{reads}\"\n",
        socket.display()
    ));
    let nuage = folder.serve();
    for host in ["tcp", "named", "unix"] {
        for scheme in ["http", "https"] {
            let got = nuage.curl(&format!("{scheme}://{host}.w.example/page"), &[]);
            assert_eq!(
                (got.status, &*got.body),
                (200, "from nginx"),
                "{scheme} {host}"
            );
        }
    }
    // What a client says of itself is overwritten; hop-by-hop fields go (RFC 9110 §7.6.1).
    let echo = nuage.curl(
        "https://tcp.w.example/echo?q=%2F",
        &[
            "--http1.1",
            "-H",
            "X-Forwarded-For: 6.6.6.6",
            "-H",
            "Forwarded: for=6.6.6.6",
            "-H",
            "X-Real-IP: 6.6.6.6",
            "-H",
            "X-Forwarded-Proto: gopher",
            "-H",
            "X_Forwarded_For: 6.6.6.6",
            "-H",
            "TE: trailers",
            "-H",
            "X-Hop: 1",
            "-H",
            "Connection: X-Hop",
        ],
    );
    let host = format!("tcp.w.example:{}", nuage.https[0].port());
    let want = format!(
        "GET /echo?q=%2F {host}|127.0.0.1|https|tcp.w.example|for=127.0.0.1;host=\"tcp.w.example\";proto=https|127.0.0.1|||"
    );
    assert!(echo.body.starts_with(&want), "{}\n{want}", echo.body);
    assert!(!echo.body.contains("6.6.6.6"));
    let v6 = nuage.curl_at(1, "http://tcp.w.example/echo", &[]);
    assert!(
        v6.body.contains("|::1|http|") && v6.body.contains("for=\"[::1]\""),
        "{}",
        v6.body
    );

    // A body over the limit, declared or not.
    let large = nuage.folder.write("large", &"x".repeat(150_000));
    let upload = format!("@{}", large.display());
    assert_eq!(
        nuage
            .curl("http://tcp.w.example/echo", &["--data-binary", &upload])
            .status,
        413
    );
    let chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", &upload];
    assert_eq!(nuage.curl("http://reader.w.example/", &chunked).status, 413);
    assert_eq!(
        nuage
            .curl("http://tcp.w.example/echo", &["-d", "small"])
            .status,
        200
    );
}

#[test]
fn an_upstream_over_http2_with_trailers() {
    let port = free_port();
    let nghttpd = [
        "--no-tls",
        "-a",
        "127.0.0.1",
        "-d",
        "@DIR@",
        "--trailer",
        "x-checksum: 42",
        &port.to_string(),
    ];
    let _nghttpd = Server::start(&[("page", "over h2c")], port, "nghttpd", &nghttpd);
    let nuage = Nuage::start(&format!(
        "[sites.h2]\nupstream = \"h2c://127.0.0.1:{port}\"\n"
    ));
    let got = nuage.curl("http://h2.w.example/page", &[]);
    assert_eq!((got.status, &*got.body), (200, "over h2c"));
    // Trailers pass to HTTP/2 clients.
    let url = format!("https://{}/page", nuage.https[0]);
    let trailers = run(
        "nghttp",
        &[
            "-nv",
            "--no-verify-peer",
            "-H",
            ":authority: h2.w.example",
            &url,
        ],
    );
    assert!(trailers.out.contains("x-checksum: 42"), "{trailers:?}");
    let secure = nuage.curl("https://h2.w.example/page", &["--http2"]);
    assert!(secure.body.contains("over h2c"), "{secure:?}");
}

#[test]
fn websockets_pass_both_ways() {
    let port = free_port();
    let echo = format!(
        "import asyncio, websockets\nasync def echo(ws):\n  async for message in ws:\n    await ws.send(message[::-1])\n\
         async def main():\n  async with websockets.serve(echo, '127.0.0.1', {port}):\n    await asyncio.Future()\nasyncio.run(main())\n"
    );
    let _echo = Server::start(
        &[("echo.py", &echo)],
        port,
        "/usr/bin/python3",
        &["@DIR@/echo.py"],
    );
    // A conversation is no body: the limits of one don't end it, nor does a silence at both ends.
    let folder = Folder::new("[limits]\nbody_bytes = 1000\nstall_seconds = 1\n");
    folder.zone(&format!(
        "[sites.ws]\nupstream = \"http://127.0.0.1:{port}\"\n"
    ));
    let nuage = folder.serve();
    let client = format!(
        "import asyncio, ssl, websockets\nasync def ask(url, port, **more):\n  async with websockets.connect(url, host='127.0.0.1', port=port, **more) as ws:\n    \
         for word in ('abc', 'x' * 100000):\n      await ws.send(word)\n      assert await ws.recv() == word[::-1]\n      await asyncio.sleep(2.5)\n\
         tls = ssl.create_default_context(cafile='{}')\n\
         asyncio.run(ask('ws://ws.w.example:{}/', {}))\nasyncio.run(ask('wss://ws.w.example:{}/', {}, ssl=tls, server_hostname='ws.w.example'))\nprint('echoed')\n",
        nuage.ca(),
        nuage.http[0].port(),
        nuage.http[0].port(),
        nuage.https[0].port(),
        nuage.https[0].port()
    );
    let file = nuage.folder.write("client.py", &client);
    let ran = run("/usr/bin/python3", &[file.to_str().unwrap()]);
    assert_eq!(ran.out, "echoed\n", "{ran:?}");
}

#[test]
fn a_request_that_comes_round_is_stopped() {
    let folder = Folder::new("");
    let port = free_port();
    let config = fs::read_to_string(folder.config()).unwrap().replacen(
        "[http]\nlisten = [\"127.0.0.1:0\"",
        &format!("[http]\nlisten = [\"127.0.0.1:{port}\""),
        1,
    );
    folder.write("nuage.toml", &config);
    folder.zone(&format!(
        "[sites.round]\nupstream = \"http://127.0.0.1:{port}\"\n"
    ));
    let nuage = folder.serve();
    let got = nuage.curl("http://round.w.example/", &[]);
    assert!(
        got.status == 508 && got.body.contains("leads to itself"),
        "{got:?}"
    );
}

#[test]
fn the_access_log_is_json_lines_one_file_a_site() {
    let folder = Folder::new("[access_log]\nenabled = true\n");
    folder.write("www/index.html", "hello");
    folder.zone("[sites.files]\nstatic = \"../www\"\n");
    let nuage = folder.serve();
    assert_eq!(
        nuage
            .curl(
                "https://files.w.example/?a=%22b",
                &["-A", "agent \"x\"", "-e", "http://from.example/"]
            )
            .status,
        200
    );
    let path = nuage
        .folder
        .path()
        .join("state/edge/logs/files.w.example.jsonl");
    until("a line is logged", || {
        fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
    });
    let line: serde_json::Value =
        serde_json::from_str(fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(line["status"], 200);
    assert_eq!(line["bytes"], 5);
    assert_eq!(line["site"], "files.w.example");
    assert_eq!(line["scheme"], "https");
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(line["user_agent"], "agent \"x\"");
}
