//! The admin listener.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use hickory_proto::rr::RecordType;

use crate::{
    client::{Over, ask},
    harness::{Nuage, run, until},
};

#[test]
fn metrics_pass_promtool_and_follow_the_zones() {
    let nuage = Nuage::start("[sites.alice]\nredirect = \"https://x.example/\"\n");
    ask(nuage.dns[0], Over::Udp, "alice.w.example.", RecordType::A);
    ask(
        nuage.dns[1],
        Over::Tcp,
        "nobody.w.example.",
        RecordType::Unknown(65_280),
    );
    ask(
        nuage.dns[0],
        Over::Udp,
        "www.elsewhere.example.",
        RecordType::A,
    );
    nuage.curl("http://alice.w.example/", &[]);
    nuage.curl("http://nobody.w.example/", &["-X", "BREW"]);
    // A request is counted once its answer is out.
    until("both requests are counted", || {
        nuage
            .metrics()
            .matches("nuage_http_requests_total{")
            .count()
            == 2
    });
    let metrics = nuage.metrics();
    for line in [
        "nuage_dns_requests_total{family=\"ipv4\",proto=\"udp\",type=\"A\",zone=\"w.example\"} 1",
        "nuage_dns_requests_total{family=\"ipv6\",proto=\"tcp\",type=\"other\",zone=\"w.example\"} 1",
        "nuage_dns_responses_total{rcode=\"NXDOMAIN\",zone=\"w.example\"} 1",
        "nuage_dns_responses_total{rcode=\"REFUSED\",zone=\"other\"} 1",
        "nuage_http_requests_total{code=\"307\",method=\"GET\",site=\"alice.w.example\"} 1",
        "nuage_http_requests_total{code=\"404\",method=\"other\",site=\"other\"} 1",
        "nuage_http_request_duration_seconds_count 2",
        "nuage_registry_generation 1",
        "nuage_sites{zone=\"w.example\"} 1",
        "nuage_config_reloads_total{result=\"success\"} 0",
        "nuage_build_info{version=",
        "nuage_tls_cert_not_after_timestamp_seconds{zone=\"w.example\"} ",
        "process_resident_memory_bytes ",
    ] {
        let sorted = normal(line);
        assert!(
            metrics
                .lines()
                .map(normal)
                .any(|found| found.starts_with(&sorted)),
            "{line} in\n{metrics}"
        );
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (scripts/test installs it)");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let checked = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned()
        + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.is_empty(), "{said}");

    // A removed site's series go.
    nuage.folder.zone("[sites.bob]\n");
    until("alice's series are gone", || {
        !nuage.metrics().contains("alice.w.example")
    });
    assert!(nuage.metrics().contains("nuage_registry_generation 2"));
}

/// Labels in one order.
fn normal(line: &str) -> String {
    match (line.find('{'), line.find('}')) {
        (Some(open), Some(close)) => {
            let mut labels: Vec<&str> = line[open + 1..close].split(',').collect();
            labels.sort_unstable();
            format!("{}{{{}{}", &line[..open], labels.join(","), &line[close..])
        }
        _ => line.to_owned(),
    }
}

#[test]
fn health_is_told_over_http() {
    let nuage = Nuage::start("[sites.alice]\n");
    let get = |path: &str| {
        run(
            "curl",
            &[
                "-sS",
                "-w",
                " %{http_code}",
                &format!("http://{}{path}", nuage.admin),
            ],
        )
        .out
    };
    assert_eq!(get("/healthz"), "ok\n 200");
    assert_eq!(get("/readyz"), "ready\n 200");
    assert!(get("/").contains("/metrics"));
    assert!(get("/nothing").ends_with(" 404"));
}
