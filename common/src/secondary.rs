//! Who may transfer zones and is told of their changes: `[[secondaries]]` of `nuage.toml`, and the
//! keys they sign with, `[keys.NAME]`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use data_encoding::BASE64;
use hickory_proto::rr::{LowerName, Name};
use ipnet::IpNet;

use crate::{
    paths, reverse,
    table::{At, Reading, Table},
};

/// Where a secondary hears of changes unless it says otherwise.
const PORT: u16 = 53;
/// Each may have to be told of every zone.
const MOST_SECONDARIES: usize = 64;
const MOST_KEYS: usize = 64;
/// Shorter secrets can be guessed.
const LEAST_SECRET_OCTETS: usize = 16;
/// Longer ones are hashed first and gain nothing (RFC 2104 §3).
const MOST_SECRET_OCTETS: usize = 512;

/// All secondaries and all keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secondaries {
    all: Vec<Secondary>,
    keys: Vec<Arc<Key>>,
}

/// One secondary, or a network of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secondary {
    network: IpNet,
    /// Where NOTIFY goes.
    pub notify: Option<SocketAddr>,
    /// What its transfers must be signed with, and its NOTIFY are.
    pub key: Option<Arc<Key>>,
    /// The zones it may have; `None` is all.
    zones: Option<Vec<LowerName>>,
    pub(crate) tls: bool,
}

/// A secret shared with others (RFC 8945).
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name, the same on both sides.
    pub name: LowerName,
    /// How it signs.
    pub algorithm: Algorithm,
    /// The secret itself.
    pub secret: Box<[u8]>,
}

/// How a key signs (RFC 8945 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// hmac-sha256.
    HmacSha256,
    /// hmac-sha512.
    HmacSha512,
}

impl Algorithm {
    /// Its name, as DNS and people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha512 => "hmac-sha512",
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A secret belongs in no log.
        write!(f, "Key({} {})", self.name, self.algorithm.name())
    }
}

impl Secondary {
    /// The zones it is limited to.
    pub fn zones(&self) -> impl Iterator<Item = &LowerName> {
        self.zones.iter().flatten()
    }

    /// Whether it may have this zone at all.
    pub fn wants(&self, zone: &LowerName) -> bool {
        self.zones.as_ref().is_none_or(|zones| zones.contains(zone))
    }
}

impl Secondaries {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All of them, in the order they are written.
    pub fn iter(&self) -> impl Iterator<Item = &Secondary> {
        self.all.iter()
    }

    /// Whether anybody may have this zone.
    pub fn want(&self, zone: &LowerName) -> bool {
        self.all.iter().any(|secondary| secondary.wants(zone))
    }

    /// The key of that name.
    pub fn key(&self, name: &LowerName) -> Option<&Arc<Key>> {
        self.keys.iter().find(|key| key.name == *name)
    }

    /// Whether somebody at `source`, who signed with `key` and came over TLS or not, may transfer a
    /// zone.
    pub fn allow(&self, zone: &LowerName, source: IpAddr, key: Option<&Key>, tls: bool) -> bool {
        let source = source.to_canonical();
        self.all.iter().any(|secondary| {
            let known = secondary.key.as_deref();
            secondary.network.contains(&source)
                && secondary.wants(zone)
                && (known.is_none() || known == key)
                && (tls || !secondary.tls)
        })
    }

    pub(crate) fn read(root: &Table<'_>, base: &Path, reading: &mut Reading<'_>) -> Self {
        const KEYS: &[&str] = &["address", "key", "zones", "notify", "tls"];
        let keys = keys(root, base, reading);
        let mut all = Vec::new();
        for table in root.array_of_tables("secondaries", KEYS, reading) {
            if all.len() == MOST_SECONDARIES {
                let most = format!(
                    "more than {MOST_SECONDARIES} secondaries: write a network instead, with notify = false"
                );
                reading.error(table.at, most);
                break;
            }
            all.extend(secondary(&table, &keys, reading));
        }
        let keys = keys.into_iter().filter_map(|(_, key)| key).collect();
        Self { all, keys }
    }
}

/// The keys by the names they are written under; one that is wrong is known all the same.
fn keys<'d>(
    root: &Table<'d>,
    base: &Path,
    reading: &mut Reading<'_>,
) -> Vec<(&'d str, Option<Arc<Key>>)> {
    let tables = root.named_tables("keys", &["algorithm", "secret", "secret_file"], reading);
    if let Some((name, _)) = tables.get(MOST_KEYS) {
        reading.error(name.at, format!("more than {MOST_KEYS} keys"));
    }
    let mut keys: Vec<(&str, Option<Arc<Key>>)> = Vec::new();
    for (name, table) in tables.iter().take(MOST_KEYS) {
        let found = key(name, table, base, reading);
        let twice = |other: &Key| found.as_ref().is_some_and(|key| key.name == other.name);
        if keys
            .iter()
            .any(|(_, key)| key.as_deref().is_some_and(twice))
        {
            reading.error(
                name.at,
                format!("the key \"{}\" is there already", name.value),
            );
        }
        keys.push((name.value, found.map(Arc::new)));
    }
    keys
}

fn key(name: &At<&str>, table: &Table<'_>, base: &Path, reading: &mut Reading<'_>) -> Option<Key> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let parsed = Name::from_ascii(format!("{}.", name.value.trim_end_matches('.')));
    let parsed = parsed.ok().filter(|_| name.value.bytes().all(plain));
    if parsed.is_none() {
        reading.error(
            name.at,
            format!(
                "\"{}\" can't be a key's name: write a domain name, such as campus or \"campus.example\"",
                name.value
            ),
        );
    }
    let algorithm = match table.string("algorithm", reading) {
        Some(At {
            value: "hmac-sha256",
            ..
        }) => Some(Algorithm::HmacSha256),
        Some(At {
            value: "hmac-sha512",
            ..
        }) => Some(Algorithm::HmacSha512),
        Some(other) => {
            reading.error(
                other.at,
                format!(
                    "`algorithm` must be \"hmac-sha256\" or \"hmac-sha512\", found \"{}\"",
                    other.value
                ),
            );
            None
        }
        None => {
            if !table.has("algorithm") {
                reading.error(
                    table.at,
                    format!(
                        "[keys.{}] needs algorithm = \"hmac-sha256\" or \"hmac-sha512\"",
                        name.value
                    ),
                );
            }
            None
        }
    };
    let secret = secret(name.value, table, base, reading);
    Some(Key {
        name: LowerName::new(&parsed?),
        algorithm: algorithm?,
        secret: secret?,
    })
}

fn secret(
    name: &str,
    table: &Table<'_>,
    base: &Path,
    reading: &mut Reading<'_>,
) -> Option<Box<[u8]>> {
    if table.has("secret") == table.has("secret_file") {
        reading.error(
            table.at,
            format!(
                "[keys.{name}] needs either secret = \"…\" or secret_file = \"…\": `tsig-keygen -a hmac-sha256 {name}` makes one"
            ),
        );
        return None;
    }
    let (text, at) = if let Some(written) = table.string("secret", reading) {
        (written.value.to_owned(), written.at)
    } else {
        let written = table.string("secret_file", reading)?;
        let file = paths::join(base, written.value);
        match std::fs::read_to_string(&file) {
            Ok(text) => (text, written.at),
            Err(error) => {
                reading.error(
                    written.at,
                    format!("can't read the secret {}: {error}", file.display()),
                );
                return None;
            }
        }
    };
    let secret = base64(text.trim());
    match &secret {
        None => reading.error(
            at,
            format!("the secret of the key \"{name}\" is not base64: `tsig-keygen -a hmac-sha256 {name}` makes one"),
        ),
        Some(secret) if !(LEAST_SECRET_OCTETS..=MOST_SECRET_OCTETS).contains(&secret.len()) => {
            reading.error(
                at,
                format!(
                    "the secret of the key \"{name}\" has {} octets: it takes {LEAST_SECRET_OCTETS} to {MOST_SECRET_OCTETS}",
                    secret.len()
                ),
            );
            return None;
        }
        Some(_) => {}
    }
    secret.map(Vec::into_boxed_slice)
}

fn secondary(
    table: &Table<'_>,
    keys: &[(&str, Option<Arc<Key>>)],
    reading: &mut Reading<'_>,
) -> Option<Secondary> {
    let notify = table.boolean("notify", reading).unwrap_or(true);
    let tls = table.boolean("tls", reading).unwrap_or(false);
    let mut zones = None;
    if table.has("zones") {
        let mut found = Vec::new();
        for written in table.strings("zones", reading) {
            match reverse::parse_origin(written.value) {
                Some(origin) => found.push(LowerName::new(&origin)),
                None => reading.error(
                    written.at,
                    format!("\"{}\" is not a zone's name", written.value),
                ),
            }
        }
        zones = Some(found);
    }
    let mut signs = None;
    if let Some(written) = table.string("key", reading) {
        match keys.iter().find(|(name, _)| *name == written.value) {
            Some((_, key)) => signs = Some(key.clone()?),
            None => {
                reading.error(
                    written.at,
                    format!("there is no key \"{0}\": write [keys.{0}]", written.value),
                );
                return None;
            }
        }
    }
    let Some(written) = table.string("address", reading) else {
        if !table.has("address") {
            reading.error(
                table.at,
                "a secondary needs address = \"…\", where its transfers come from",
            );
        }
        return None;
    };
    let Some((network, port)) = place(written.value) else {
        reading.error(
            written.at,
            format!(
                "\"{}\" is not where a secondary is: write \"192.0.2.53\", \"[2001:db8::53]:5353\", or a network such as \"192.0.2.0/24\" with notify = false",
                written.value
            ),
        );
        return None;
    };
    let single = network.prefix_len() == network.max_prefix_len();
    if notify && !single {
        reading.error(
            written.at,
            format!(
                "a whole network such as \"{}\" can't be told of changes: add notify = false",
                written.value
            ),
        );
    }
    Some(Secondary {
        notify: (notify && single).then(|| SocketAddr::new(network.addr(), port)),
        network,
        key: signs,
        zones,
        tls,
    })
}

/// An address, an address and port, or a network.
fn place(text: &str) -> Option<(IpNet, u16)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((IpNet::from(address.to_canonical()), PORT));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        let port = address.port();
        return (port != 0).then(|| (IpNet::from(address.ip().to_canonical()), port));
    }
    let network = text.parse::<IpNet>().ok()?;
    (network.addr() == network.network()).then_some((network, PORT))
}

/// Base64 with its padding (RFC 4648 §4); white space between is what line breaks leave.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let padding = digits.iter().rev().take_while(|&&b| b == b'=').count();
    // The decoder would take several texts one after another, as no other server does.
    if digits.is_empty() || digits[..digits.len() - padding].contains(&b'=') {
        return None;
    }
    BASE64.decode(&digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";

    fn read(text: &str) -> Result<Secondaries, String> {
        let text = format!("[address]\nipv4 = \"192.0.2.1\"\n{text}");
        Config::parse(Path::new("n.toml"), &text)
            .map(|config| config.secondaries)
            .map_err(|broken| broken.to_string())
    }

    #[test]
    fn who_may_transfer_what() {
        let found = read(&format!(
            "[[secondaries]]\naddress = \"192.0.2.53\"\nkey = \"campus\"\nzones = [\"W.example\", \"0/25.2.0.192.in-addr.arpa\"]\n\
             [[secondaries]]\naddress = \"[2001:db8::53]:5353\"\ntls = true\n\
             [[secondaries]]\naddress = \"10.0.0.0/8\"\nnotify = false\n\
             [keys.campus]\nalgorithm = \"hmac-sha256\"\nsecret = \"{SECRET}\"\n"
        ))
        .unwrap();
        let name = |text: &str| LowerName::new(&Name::from_ascii(text).unwrap());
        let (zone, other) = (name("w.example."), name("v.example."));
        let key = found.key(&name("Campus.")).map(|key| &**key);
        assert_eq!(&*key.unwrap().secret, b"0123456789abcdef");
        let at = |text: &str| text.parse().unwrap();
        assert!(found.allow(&zone, at("192.0.2.53"), key, false));
        assert!(found.allow(&zone, at("::ffff:192.0.2.53"), key, false));
        assert!(!found.allow(&zone, at("192.0.2.53"), None, false));
        assert!(!found.allow(&other, at("192.0.2.53"), key, false));
        assert!(!found.allow(&zone, at("192.0.2.54"), key, true));
        assert!(!found.allow(&zone, at("2001:db8::53"), None, false));
        assert!(found.allow(&other, at("2001:db8::53"), None, true));
        assert!(found.allow(&other, at("10.9.8.7"), None, false));
        let told: Vec<_> = found.iter().map(|secondary| secondary.notify).collect();
        assert_eq!(
            told,
            [
                Some("192.0.2.53:53".parse().unwrap()),
                Some("[2001:db8::53]:5353".parse().unwrap()),
                None
            ]
        );
        assert!(!format!("{found:?}").contains(SECRET));
        assert!(!format!("{found:?}").contains("0123456789"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let key = |text: &str| format!("[keys.k]\n{text}\n");
        let secondary = |text: &str| format!("[[secondaries]]\n{text}\n");
        for (text, told) in [
            (secondary(""), "needs address"),
            (
                secondary("address = \"ns2\""),
                "is not where a secondary is",
            ),
            (secondary("address = \"10.0.0.1/8\""), "is not where"),
            (secondary("address = \"10.0.0.0/8\""), "add notify = false"),
            (
                secondary("address = \"192.0.2.1\"\nkey = \"x\""),
                "write [keys.x]",
            ),
            (
                secondary("address = \"192.0.2.1\"\nzones = [\"a b\"]"),
                "not a zone's name",
            ),
            (
                secondary("adress = \"192.0.2.1\""),
                "did you mean \"address\"",
            ),
            (key("algorithm = \"hmac-md5\""), "must be \"hmac-sha256\""),
            (key("secret = \"a\""), "needs algorithm"),
            (key("algorithm = \"hmac-sha256\""), "needs either secret"),
            (
                key("algorithm = \"hmac-sha256\"\nsecret = \"abc\""),
                "is not base64",
            ),
            (
                key("algorithm = \"hmac-sha256\"\nsecret = \"YWJj\""),
                "has 3 octets",
            ),
            (
                key("algorithm = \"hmac-sha256\"\nsecret_file = \"nowhere\""),
                "can't read the secret nowhere",
            ),
            (
                "[keys.\"a b\"]\nalgorithm = \"hmac-sha256\"\n".to_owned(),
                "can't be a key's name",
            ),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn base64_is_read_strictly() {
        assert_eq!(base64("Zm9vYmFy").unwrap(), b"foobar");
        assert_eq!(base64("Zm9v\n Yg==").unwrap(), b"foob");
        for bad in ["", "Zg", "Zg=a", "Z===", "Zh==", "Zm9*", "====", "Zg==Zg=="] {
            assert!(base64(bad).is_none(), "{bad}");
        }
    }
}
