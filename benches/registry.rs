//! The pure parts by themselves, at 1,000 and 100,000 sites: a DNS lookup, a route, and the way from
//! a file's text to a registry.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::{fmt::Write, fs, hint::black_box, path::Path};

use common::{Config, Declared, zone};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hickory_proto::rr::{Name, RecordType};

const SIZES: [usize; 2] = [1_000, 100_000];

fn text(sites: usize) -> String {
    let mut text = "origin = \"w.example\"\nnameservers = [\"ns1.w.example\"]\n".to_owned();
    for number in 0..sites {
        writeln!(
            text,
            "[sites.site-{number:06}]\nredirect = \"https://www.example/{number}\""
        )
        .unwrap();
    }
    text
}

fn folder(sites: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("zones")).unwrap();
    let write = |name: &str, text: &str| {
        common::durable::replace(
            &folder.path().join(name),
            text.as_bytes(),
            common::durable::Access::Everybody,
        )
        .unwrap();
    };
    write(
        "nuage.toml",
        "[address]\nipv4 = \"192.0.2.10\"\nipv6 = \"2001:db8::10\"\n[paths]\nstate = \"state\"\n",
    );
    write("zones/w.example.toml", &text(sites));
    folder
}

fn benches(criterion: &mut Criterion) {
    for sites in SIZES {
        let folder = folder(sites);
        let declared = Declared::open(&folder.path().join("nuage.toml")).unwrap();
        let registry = declared.registry();
        let middle = format!("site-{:06}", sites / 2);

        let mut group = criterion.benchmark_group("lookup");
        let questions = [
            ("A", format!("{middle}.w.example."), RecordType::A),
            ("NXDOMAIN", "nobody.w.example.".to_owned(), RecordType::A),
            (
                "REFUSED",
                "www.elsewhere.example.".to_owned(),
                RecordType::A,
            ),
        ];
        for (what, name, kind) in questions {
            let name = Name::from_ascii(name).unwrap();
            group.bench_with_input(BenchmarkId::new(what, sites), &name, |bencher, name| {
                bencher.iter(|| common::lookup(registry, black_box(name), kind, false));
            });
        }
        group.finish();

        let mut group = criterion.benchmark_group("route");
        for (what, host) in [
            ("site", format!("{middle}.w.example")),
            ("stranger", "nobody.elsewhere.example".to_owned()),
        ] {
            group.bench_with_input(BenchmarkId::new(what, sites), &host, |bencher, host| {
                bencher.iter(|| registry.route(black_box(host)).is_some());
            });
        }
        group.finish();

        let mut group = criterion.benchmark_group("compile");
        group.sample_size(10);
        let config = Config::load(&folder.path().join("nuage.toml")).unwrap();
        let text = text(sites);
        group.bench_with_input(
            BenchmarkId::new("zone file", sites),
            &text,
            |bencher, text| {
                bencher.iter(|| {
                    zone::parse(Path::new("w.example.toml"), black_box(text), &config)
                        .zone
                        .unwrap()
                });
            },
        );
        group.bench_function(BenchmarkId::new("start", sites), |bencher| {
            bencher.iter(|| Declared::open(&folder.path().join("nuage.toml")).unwrap());
        });
        group.finish();
    }
}

criterion_group!(registry, benches);
criterion_main!(registry);
