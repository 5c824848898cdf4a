//! `zones/<origin>.toml`: one zone, its sites and its extra records.

mod offers;
mod records;
mod sites;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use hickory_proto::rr::{
    Name, RData,
    rdata::{A, AAAA},
};

use self::sites::Sites;
use crate::{
    authority::Authority,
    config::Config,
    dnssec::Dnssec,
    labels::Labels,
    name::HostName,
    paths,
    problem::Problem,
    site::Site,
    table::{At, Reading, Table},
};

/// Octets of a zone file that are read at once.
const PIECE: usize = 1 << 20;
/// Positive TTL when the file names none, in seconds.
const DEFAULT_TTL: u64 = 300;

/// One zone as its file declares it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The file it comes from.
    pub file: PathBuf,
    /// Its origin.
    pub origin: HostName,
    /// Name servers as written, the primary first.
    pub nameservers: Vec<HostName>,
    /// Whom to write to, as a domain name (RFC 1035 §3.3.13).
    pub hostmaster: Name,
    /// The sites in the order of their names.
    pub sites: Vec<Arc<Site>>,
    /// The labels of sites and aliases, each with its site's place in `sites`.
    pub labels: Arc<Labels>,
    /// A certificate of its own in place of the local authority's.
    pub certificate: Option<CertificateFiles>,
    /// How it is signed; `None` is not at all.
    pub dnssec: Option<Dnssec>,
    /// What DNS answers.
    pub authority: Arc<Authority>,
    /// SHA-256 of what DNS answers, the serial left out.
    pub digest: [u8; 32],
}

/// A certificate given as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the leaf first, then the intermediates.
    pub chain: PathBuf,
    /// PEM: the private key.
    pub key: PathBuf,
}

/// A zone file once read: the zone unless there are errors, and all problems.
#[derive(Debug)]
pub struct Parsed {
    /// The zone, when nothing is wrong with it.
    pub zone: Option<Zone>,
    /// Errors and warnings.
    pub problems: Vec<Problem>,
}

/// Reads the text of a zone file.
pub fn parse(file: &Path, text: &str, config: &Config) -> Parsed {
    let mut parsed = read_pieces(file, text, PIECE, config);
    // What is wrong is told of the text as a whole.
    if parsed.zone.is_none() && text.len() > PIECE {
        parsed = read_pieces(file, text, text.len(), config);
    }
    parsed
}

fn read_pieces(file: &Path, text: &str, piece: usize, config: &Config) -> Parsed {
    let mut reading = Reading::of(file, text);
    let zone = if text.trim().is_empty() {
        reading.error(
            0,
            "the file is empty: a zone starts with origin = \"sites.school.example\"",
        );
        None
    } else {
        read(file, text, piece, config, &mut reading)
    };
    let failed = reading.failed();
    Parsed {
        zone: zone.filter(|_| !failed),
        problems: reading.problems,
    }
}

/// The text in pieces of about `octets`, each with where it starts: a site takes over twenty times as much
/// memory while it is a TOML table as in its file. Each but the first starts with the header of a site or a
/// record. Where such a line was part of something else, what went before is no TOML by itself, and the text
/// is read again as a whole.
fn pieces(text: &str, octets: usize) -> impl Iterator<Item = (usize, &str)> {
    let starts_one = |at: &usize| {
        let line = text[*at..].lines().next().unwrap_or_default();
        // A table inside a site's own stays with it.
        line == "[[records]]"
            || line
                .strip_prefix("[sites.")
                .is_some_and(|name| !name.contains('.'))
    };
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
        let least = text.ceil_char_boundary(start.saturating_add(octets));
        let end = text[least..]
            .match_indices("\n[")
            .map(|(at, _)| least + at + 1)
            .find(starts_one)
            .unwrap_or(text.len());
        let piece = (start, &rest[..end - start]);
        start = end;
        Some(piece)
    })
}

impl Zone {
    /// The site a label leads to, by name or alias.
    pub fn site(&self, label: &str) -> Option<&Arc<Site>> {
        let index = self.labels.site(label.as_bytes())?;
        self.sites.get(usize::try_from(index).ok()?)
    }
}

fn read(
    file: &Path,
    text: &str,
    piece: usize,
    config: &Config,
    reading: &mut Reading<'_>,
) -> Option<Zone> {
    const KEYS: &[&str] = &[
        "origin",
        "nameservers",
        "hostmaster",
        "ttl",
        "certificate",
        "dnssec",
        "sites",
        "records",
    ];
    let base = file.parent().unwrap_or(Path::new(""));
    let mut pieces = pieces(text, piece);
    let (_, first) = pieces.next()?;
    let document = reading.document(0, first)?;
    let root = Table::strict(document.get_ref(), 0..0, KEYS, reading);

    let origin = origin(file, &root, reading);
    let nameservers = nameservers(&root, reading);
    let hostmaster = hostmaster(&root, origin.as_ref(), reading);
    // RFC 2181 §8 allows 31 bits; a week is as long as anyone should wait for a change.
    let ttl = root
        .integer("ttl", 1..=604_800, reading)
        .unwrap_or(DEFAULT_TTL);
    let ttl = u32::try_from(ttl).unwrap_or(u32::MAX);
    let certificate = certificate(&root, base, reading);
    let dnssec = Dnssec::read(&root, reading);
    let apex = origin.as_ref().map(name_of);

    let mut sites = Sites::default();
    let mut records = Vec::new();
    let mut body = |root: &Table<'_>, reading: &mut Reading<'_>| {
        sites.read(root, base, config, reading);
        if let Some(apex) = &apex {
            records.extend(records::read(root, apex, ttl, reading));
        }
    };
    body(&root, reading);
    drop(document);
    for (start, piece) in pieces {
        let document = reading.document(start, piece)?;
        let root = Table::strict(document.get_ref(), 0..0, &["sites", "records"], reading);
        body(&root, reading);
    }
    let sites = sites.complete(origin.as_ref(), reading);

    // Without these the file has failed; the rest is read for its own problems.
    let (origin, apex) = origin.zip(apex)?;
    let nameservers = nameservers.unwrap_or_default();
    let hostmaster = hostmaster.unwrap_or_default();

    let servers: Vec<Name> = nameservers.iter().map(name_of).collect();
    let addresses = addresses(config);
    let mut authority = Authority::new(apex.clone(), ttl, &servers, hostmaster.clone(), addresses);
    let labels = Arc::new(sites::labels(&sites, |_| true));
    authority.set_labels(Arc::clone(&labels), HashSet::new());
    for (server, name) in nameservers.iter().zip(&servers) {
        let Some(label) = server.below(&origin) else {
            continue;
        };
        if let Some(site) = labels.site(label.as_bytes()) {
            let line = sites
                .get(site as usize)
                .map_or(0, |site| site.position.line);
            reading.error(
                0,
                format!("name server {server} has the name of the site at line {line}"),
            );
            continue;
        }
        for record in authority.addresses(name).collect::<Vec<_>>() {
            authority.add(record);
        }
    }
    records::add(records, &mut authority, &sites, reading);
    offers::add(&mut authority, &sites, certificate.is_some(), config);

    Some(Zone {
        file: file.to_owned(),
        digest: authority.digest(),
        origin,
        nameservers,
        hostmaster,
        sites,
        labels,
        certificate,
        dnssec,
        authority: Arc::new(authority),
    })
}

fn origin(file: &Path, root: &Table<'_>, reading: &mut Reading<'_>) -> Option<HostName> {
    let Some(At { value, at }) = root.string("origin", reading) else {
        if !root.has("origin") {
            reading.error(0, "`origin` is missing: add origin = \"sites.school.example\", the zone delegated to this server");
        }
        return None;
    };
    let origin = HostName::parse(value)
        .map_err(|error| reading.error(at, error.to_string()))
        .ok()?;
    let stem = file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if stem != origin.as_str() {
        reading.warning(
            at,
            format!("the file is named {stem}.toml but holds {origin}: name it {origin}.toml"),
        );
    }
    Some(origin)
}

fn nameservers(root: &Table<'_>, reading: &mut Reading<'_>) -> Option<Vec<HostName>> {
    let written = root.strings("nameservers", reading);
    if written.is_empty() {
        reading.error(root.at, "`nameservers` is missing: list the names the parent zone delegates to, such as [\"ns1.sites.school.example\"]");
        return None;
    }
    let mut servers: Vec<HostName> = Vec::new();
    let mut good = true;
    for At { value, at } in written {
        match HostName::parse(value) {
            Ok(server) if servers.contains(&server) => {
                reading.error(at, format!("name server {server} is listed twice"));
            }
            Ok(server) => servers.push(server),
            Err(error) => {
                good = false;
                reading.error(at, error.to_string());
            }
        }
    }
    good.then_some(servers)
}

/// `user@host` as a domain name: dots in the user part are escaped (RFC 1035 §8).
fn hostmaster(
    root: &Table<'_>,
    origin: Option<&HostName>,
    reading: &mut Reading<'_>,
) -> Option<Name> {
    let Some(At { value, at }) = root.string("hostmaster", reading) else {
        let origin = origin?;
        return Name::from_ascii("hostmaster")
            .ok()?
            .append_domain(&name_of(origin))
            .ok();
    };
    let name = value.split_once('@').and_then(|(user, host)| {
        let host = HostName::parse(host).ok()?;
        let fits =
            !user.is_empty() && user.len() < 64 && user.bytes().all(|b| b.is_ascii_graphic());
        let labels =
            std::iter::once(user.as_bytes()).chain(host.as_str().split('.').map(str::as_bytes));
        fits.then(|| Name::from_labels(labels).ok()).flatten()
    });
    if name.is_none() {
        reading.error(
            at,
            format!("`hostmaster` must be a mail address, found \"{value}\""),
        );
    }
    name
}

fn certificate(
    root: &Table<'_>,
    base: &Path,
    reading: &mut Reading<'_>,
) -> Option<CertificateFiles> {
    let table = root.table("certificate", &["chain", "key"], reading)?;
    let chain = table.string("chain", reading);
    let key = table.string("key", reading);
    if chain.is_none() || key.is_none() {
        reading.error(table.at, "[certificate] needs chain and key, two PEM files");
    }
    let files = CertificateFiles {
        chain: paths::join(base, chain?.value),
        key: paths::join(base, key?.value),
    };
    for file in [&files.chain, &files.key] {
        if let Err(error) = std::fs::File::open(file) {
            reading.error(table.at, format!("can't read {}: {error}", file.display()));
        }
    }
    Some(files)
}

fn addresses(config: &Config) -> Vec<RData> {
    let ipv4 = config.addresses.ipv4.map(|address| RData::A(A(address)));
    let ipv6 = config
        .addresses
        .ipv6
        .map(|address| RData::AAAA(AAAA(address)));
    ipv4.into_iter().chain(ipv6).collect()
}

/// A host name as a DNS name; host names always are one.
pub fn name_of(host: &HostName) -> Name {
    Name::from_ascii(format!("{host}.")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::Backend;

    fn config() -> Config {
        Config::parse(
            Path::new("nuage.toml"),
            "[address]\nipv4 = \"192.0.2.10\"\nipv6 = \"2001:db8::10\"\n",
        )
        .unwrap()
    }

    const HEAD: &str =
        "origin = \"w.example\"\nnameservers = [\"ns1.w.example\", \"ns.other.example\"]\n";

    fn read(body: &str) -> Parsed {
        parse(
            Path::new("w.example.toml"),
            &format!("{HEAD}{body}"),
            &config(),
        )
    }

    fn problems(body: &str) -> Vec<String> {
        read(body)
            .problems
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_shortest_site_is_one_line() {
        let zone = read("[sites.alice]\n").zone.unwrap();
        assert_eq!(
            zone.site("alice").unwrap().backend,
            Backend::Container(None)
        );
        assert_eq!(zone.hostmaster.to_string(), "hostmaster.w.example.");
        assert!(zone.site("bob").is_none());
    }

    #[test]
    fn a_name_belongs_to_one_site() {
        assert_eq!(
            problems(
                "[sites.a]\naliases = [\"b\", \"c\"]\n[sites.b]\n[sites.d]\naliases = [\"c\"]\ndomains = [\"x.org\", \"x.org\"]\n"
            ),
            [
                "w.example.toml:4:12: \"b\" is taken by line 5: a name belongs to one site",
                "w.example.toml:7:12: \"c\" is taken by line 4: a name belongs to one site",
                "w.example.toml:8:21: \"x.org\" is taken by line 8: a name belongs to one site",
            ]
        );
        assert!(
            problems("[sites.a]\n[sites.a]\n")[0].starts_with("w.example.toml:4:"),
            "{:?}",
            problems("[sites.a]\n[sites.a]\n")
        );
    }

    #[test]
    fn sites_keep_to_the_rules_of_names_and_backends() {
        for (body, want) in [
            ("[sites.ns7]\n", "reserved"),
            ("[sites.portal]\n", "reserved"),
            ("[sites.\"a_b\"]\n", "not a host name"),
            ("[sites.\"a.b\"]\n", "one label"),
            (
                "[sites.a]\nstatic = \"x\"\nredirect = \"http://x\"\n",
                "one backend",
            ),
            (
                "[sites.a]\nredirect = \"javascript:alert(1)\"\n",
                "http or https",
            ),
            ("[sites.a]\nupstream = \"nowhere\"\n", "not a URL"),
            ("[sites.a]\nhttps = \"no\"\n", "\"redirect\" or \"both\""),
            ("[sites.a]\nalias = [\"b\"]\n", "did you mean \"aliases\"?"),
            (
                "[sites.a]\ndomains = [\"b.w.example\"]\n",
                "make it an alias",
            ),
            (
                "[sites.a]\nowner = 3\n",
                "must be a string in quotes, found an integer",
            ),
        ] {
            let found = problems(body);
            assert!(found.iter().any(|p| p.contains(want)), "{body}: {found:?}");
        }
    }

    #[test]
    fn records_keep_to_the_rules_of_zones() {
        let record = |name: &str, kind: &str, data: &str| {
            format!("[[records]]\nname = \"{name}\"\ntype = \"{kind}\"\ndata = '{data}'\n")
        };
        let good = record("@", "MX", "10 mx")
            + &record("mx", "A", "192.0.2.25")
            + &record("_dmarc.alice", "TXT", "v=DMARC1");
        assert_eq!(problems(&good), Vec::<String>::new());
        for (body, want) in [
            (record("@", "NS", "x."), "come from `nameservers`"),
            (record("@", "CNAME", "x."), "can't have a CNAME"),
            (
                record("a", "CNAME", "x.") + &record("a", "A", "192.0.2.1"),
                "the only record",
            ),
            (
                record("a", "A", "192.0.2.1") + &record("a", "A", "192.0.2.1"),
                "there already",
            ),
            (
                "[sites.a]\n".to_owned() + &record("a", "TXT", "x"),
                "is the site of line 3",
            ),
            (
                "[[records]]\nname = \"a\"\n".to_owned(),
                "needs name, type and data",
            ),
            (
                record("a", "DS", &format!("1 13 2 {}", "ab".repeat(32))),
                "no NS records",
            ),
        ] {
            let found = problems(&body);
            assert!(found.iter().any(|p| p.contains(want)), "{body}: {found:?}");
        }
    }

    /// Sites and records over some pieces, `middle` in the second of them.
    fn long(middle: &str) -> String {
        let many = |word: &str| -> String {
            let site = |n| format!("[sites.{word}{n}]\nowner = \"école {n}\"\n");
            (0..PIECE / 25).map(site).collect()
        };
        let record =
            |name: &str| format!("[[records]]\nname = \"{name}\"\ntype = \"TXT\"\ndata = \"x\"\n");
        [
            HEAD,
            &many("a"),
            &record("x"),
            middle,
            &many("b"),
            &record("y"),
            "[sites.last]\n",
        ]
        .concat()
    }

    #[test]
    fn a_long_file_is_read_piece_by_piece_as_it_would_be_whole() {
        let file = Path::new("w.example.toml");
        let text = long("[sites.m]\naliases = [\"n\"]\n[sites.m.environment]\nA = \"b\"\n");
        let cut: Vec<_> = pieces(&text, PIECE).collect();
        assert!(cut.len() > 2, "{}", cut.len());
        assert_eq!(
            cut.iter().map(|(_, piece)| *piece).collect::<String>(),
            text
        );
        let whole = read_pieces(file, &text, text.len(), &config());
        assert!(whole.problems.is_empty());
        for octets in [1, 100, 5_000, PIECE] {
            let read = read_pieces(file, &text, octets, &config());
            assert!(read.problems.is_empty(), "{octets}: {:?}", read.problems);
            assert!(read.zone == whole.zone, "{octets}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_long_file_is_told_of_all_of_it() {
        let file = Path::new("w.example.toml");
        let read = |middle: &str| parse(file, &long(middle), &config());
        let right = read("").zone.unwrap();
        // Right, but not in pieces: a header that is text, and a table far from its site's.
        let text = format!(
            "[sites.m.environment]\n{}A = \"\"\"\n[sites.q]\n\"\"\"\n",
            "#\n".repeat(PIECE / 2)
        );
        for middle in [&text, "[sites.a1.environment]\nA = \"b\"\n"] {
            let read = read(middle);
            assert!(read.problems.is_empty(), "{:?}", read.problems);
            assert!(
                read.zone
                    .is_some_and(|zone| zone.site("q").is_none() && zone != right)
            );
        }
        let line = 2 + 2 * (PIECE / 25) + 4 + 1;
        for (middle, want) in [
            ("[sites.a1]\n", format!("{line}:8: duplicate key")),
            (
                "[sites.A1]\n",
                format!("{line}:8: \"a1\" is taken by line 5"),
            ),
            (
                "[sites.m]\naliases = [\"b1\"]\n",
                format!("{}:12: \"b1\" is taken by line {}", line + 1, line + 4),
            ),
            (
                "[dnssec]\nenabled = 1\n",
                format!("{}:11: `enabled` must be", line + 1),
            ),
            ("[dnsec]\n", format!("{line}:2: unknown key \"dnsec\"")),
            ("a b\n", format!("{line}:3:")),
        ] {
            let told: Vec<String> = read(middle)
                .problems
                .iter()
                .map(ToString::to_string)
                .collect();
            assert!(
                told.iter().any(|told| told.contains(&want)),
                "{middle}: {want} {told:?}"
            );
        }
    }

    #[test]
    fn a_name_fits_the_wire_with_its_zone() {
        let origin = [["o"; 63].concat(), ["p"; 63].concat(), ["q"; 63].concat()].join(".");
        let read = |label: usize, alias: usize| {
            let text = format!(
                "origin = \"{origin}\"\nnameservers = [\"ns.other.example\"]\n[sites.{}]\naliases = [\"{}\"]\n",
                "a".repeat(label),
                "b".repeat(alias)
            );
            parse(Path::new("w.example.toml"), &text, &config()).problems
        };
        assert_eq!(
            read(61, 61)
                .iter()
                .filter(|problem| problem.is_error())
                .count(),
            0
        );
        let told = [read(62, 61), read(61, 62)].concat();
        let told: Vec<String> = told
            .iter()
            .filter(|p| p.is_error())
            .map(ToString::to_string)
            .collect();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told.iter()
                .all(|told| told.contains("longer than 253 characters")),
            "{told:?}"
        );
    }

    #[test]
    fn empty_and_headless_files_say_what_to_write() {
        let at = |text: &str| {
            parse(Path::new("w.example.toml"), text, &config()).problems[0].to_string()
        };
        assert!(at(" \n").contains("the file is empty"));
        assert!(at("[sites.a]\n").contains("`origin` is missing"));
        assert!(at("origin = \"w.example\"\n").contains("`nameservers` is missing"));
    }
}
