//! Groups of tenants: the limits their sites share and the network they sit on.

use std::{collections::BTreeMap, time::Duration};

use bytesize::ByteSize;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use crate::{
    container,
    table::{Reading, Table},
};

/// The group of sites that name none, and what the others start from.
pub const DEFAULT: &str = "default";

/// The standard image.
pub const STANDARD_IMAGE: &str = "nuage-php:8.2";

/// Common limits and the network of some sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Memory of one site, in octets; there is no swap beside it.
    pub memory_bytes: u64,
    /// Processors of one site, in thousandths.
    pub cpu_millis: u64,
    /// Processes and threads of one site.
    pub pids: u64,
    /// Disk of one site, in octets; `None` is as much as the file system has.
    pub disk_bytes: Option<u64>,
    /// What its sites may reach beyond the server.
    pub egress: Egress,
    /// Idle time before a site's processes are frozen; `None` is never.
    pub doze_after: Option<Duration>,
    /// Idle time before they are ended; `None` is never.
    pub sleep_after: Option<Duration>,
    /// Idle time before the container goes, files kept; `None` is never.
    pub archive_after: Option<Duration>,
    /// The image of sites that name none.
    pub image: String,
    /// Where the image's server listens.
    pub port: u16,
    /// How long a site may take from its start to its first accepted connection.
    pub ready_within: Duration,
    /// Explicit networks, each for at most 500 sites; none take the next free ones of `[containers]`.
    pub subnets: Vec<Subnet>,
    /// The interface of the group's own VLAN, instead of a bridge.
    pub parent: Option<String>,
}

/// The addresses of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Subnet {
    /// IPv4, at most 24 bits long.
    pub v4: Ipv4Net,
    /// IPv6, a /64.
    pub v6: Option<Ipv6Net>,
}

/// What sites may reach beyond the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Nothing.
    None,
    /// Public addresses; never private ones.
    Internet,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            memory_bytes: 128 << 20,
            cpu_millis: 1_000,
            pids: 64,
            disk_bytes: Some(1 << 30),
            egress: Egress::None,
            doze_after: Some(Duration::from_secs(120)),
            sleep_after: Some(Duration::from_secs(15 * 60)),
            archive_after: Some(Duration::from_secs(30 * 86_400)),
            image: STANDARD_IMAGE.to_owned(),
            port: 8080,
            ready_within: Duration::from_secs(20),
            subnets: Vec::new(),
            parent: None,
        }
    }
}

/// All groups by name; `default` is always there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups(BTreeMap<String, Group>);

impl Default for Groups {
    fn default() -> Self {
        Self(BTreeMap::from([(DEFAULT.to_owned(), Group::default())]))
    }
}

impl Groups {
    /// The group a site belongs to: the one it names, where that is declared, or the default one.
    pub fn of(&self, name: Option<&str>) -> (&str, &Group) {
        let named = name.and_then(|name| self.0.get_key_value(name));
        let (name, group) = named
            .or_else(|| self.0.get_key_value(DEFAULT))
            .unwrap_or_else(|| unreachable!("the default group is always there"));
        (name, group)
    }

    /// Every group with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Group)> {
        self.0.iter().map(|(name, group)| (name.as_str(), group))
    }

    /// The tables `[groups.NAME]`; the keys one leaves out are those of `[groups.default]`.
    pub(crate) fn read(root: &Table<'_>, reading: &mut Reading<'_>) -> Self {
        const KEYS: &[&str] = &[
            "memory",
            "cpus",
            "pids",
            "disk",
            "egress",
            "doze_after",
            "sleep_after",
            "archive_after",
            "image",
            "port",
            "ready_within",
            "subnets",
            "parent",
        ];
        let tables = root.named_tables("groups", KEYS, reading);
        let mut start = Group::default();
        if let Some((_, table)) = tables.iter().find(|(name, _)| name.value == DEFAULT) {
            start = read(table, &start, reading);
        }
        let mut groups = BTreeMap::from([(DEFAULT.to_owned(), start.clone())]);
        // A network belongs to one group: it is not inherited.
        start.subnets.clear();
        start.parent = None;
        for (name, table) in tables.iter().filter(|(name, _)| name.value != DEFAULT) {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.value.is_empty() || name.value.len() > 32 || !name.value.bytes().all(plain) {
                reading.error(
                    name.at,
                    format!(
                        "\"{}\" can't be a group: write 1 to 32 of a-z, 0-9 and -",
                        name.value
                    ),
                );
                continue;
            }
            groups.insert(name.value.to_owned(), read(table, &start, reading));
        }
        Self(groups)
    }
}

fn read(table: &Table<'_>, from: &Group, reading: &mut Reading<'_>) -> Group {
    let mut group = from.clone();
    if let Some(bytes) = size(table, "memory", reading) {
        group.memory_bytes = bytes;
        // Less than this and Apache itself does not start.
        if bytes < 16 << 20 {
            reading.error(table.at, "`memory` must be at least \"16MiB\"");
        }
    }
    if let Some(cpus) = table.decimal("cpus", 0.01..=1_024.0, reading) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 10 and 1,024,000"
        )]
        let millis = (cpus * 1_000.0) as u64;
        group.cpu_millis = millis;
    }
    if let Some(pids) = table.integer("pids", 8..=100_000, reading) {
        group.pids = pids;
    }
    if table.quiet_string("disk") == Some("none") {
        group.disk_bytes = None;
    } else if let Some(bytes) = size(table, "disk", reading) {
        group.disk_bytes = Some(bytes);
        if !((8 << 20)..=(1 << 44)).contains(&bytes) {
            reading.error(
                table.at,
                "`disk` must be between \"8MiB\" and \"16TiB\", or \"none\"",
            );
        }
    }
    if let Some(written) = table.string("egress", reading) {
        match written.value {
            "none" => group.egress = Egress::None,
            "internet" => group.egress = Egress::Internet,
            other => reading.error(
                written.at,
                format!("`egress` must be \"none\" or \"internet\", found \"{other}\""),
            ),
        }
    }
    for (key, place) in [
        ("doze_after", &mut group.doze_after),
        ("sleep_after", &mut group.sleep_after),
        ("archive_after", &mut group.archive_after),
    ] {
        if table.quiet_string(key) == Some("never") {
            *place = None;
        } else if let Some(time) = duration(table, key, reading) {
            *place = Some(time);
        }
    }
    if let Some(time) = duration(table, "ready_within", reading) {
        group.ready_within = time;
    }
    if let Some(image) = image(table, reading) {
        group.image = image;
    }
    if let Some(port) = table.integer("port", 1..=65_535, reading) {
        group.port = u16::try_from(port).unwrap_or(group.port);
    }
    if table.has("subnets") {
        group.subnets = subnets(table, reading);
    }
    if let Some(written) = table.string("parent", reading) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
        // IFNAMSIZ holds 16 octets with the final NUL.
        if written.value.is_empty() || written.value.len() > 15 || !written.value.bytes().all(plain)
        {
            reading.error(
                written.at,
                "`parent` must be the name of a network interface, such as \"eth0.30\"",
            );
        } else if group.subnets.is_empty() {
            reading.error(
                written.at,
                "a group on a VLAN needs `subnets`: the addresses of that VLAN",
            );
        }
        group.parent = Some(written.value.to_owned());
    }
    group
}

/// `image = "…"` of a group or a site.
pub(crate) fn image(table: &Table<'_>, reading: &mut Reading<'_>) -> Option<String> {
    let written = table.string("image", reading)?;
    if !container::is_image(written.value) {
        reading.error(
            written.at,
            format!("`image` must be an image's name and tag, such as \"{STANDARD_IMAGE}\""),
        );
        return None;
    }
    Some(written.value.to_owned())
}

/// A size such as "128MiB".
pub(crate) fn size(table: &Table<'_>, key: &str, reading: &mut Reading<'_>) -> Option<u64> {
    let written = table.string(key, reading)?;
    match written.value.parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Some(size.as_u64()),
        _ => {
            reading.error(
                written.at,
                format!(
                    "`{key}` must be a size such as \"128MiB\", found \"{}\"",
                    written.value
                ),
            );
            None
        }
    }
}

/// A time such as "15m".
pub(crate) fn duration(
    table: &Table<'_>,
    key: &str,
    reading: &mut Reading<'_>,
) -> Option<Duration> {
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
    let written = table.string(key, reading)?;
    match humantime::parse_duration(written.value) {
        Ok(time) if !time.is_zero() && time < LONGEST => Some(time),
        _ => {
            reading.error(
                written.at,
                format!(
                    "`{key}` must be a time such as \"90s\", \"15m\" or \"30days\", found \"{}\"",
                    written.value
                ),
            );
            None
        }
    }
}

/// `subnets = ["10.90.0.0/23 fd00:90::/64", …]`.
fn subnets(table: &Table<'_>, reading: &mut Reading<'_>) -> Vec<Subnet> {
    let mut found = Vec::new();
    for written in table.strings("subnets", reading) {
        let mut words = written.value.split_whitespace();
        let v4 = words.next().and_then(|word| word.parse::<Ipv4Net>().ok());
        let v6 = words.next().map(str::parse::<Ipv6Net>);
        let usable = |net: &Ipv4Net| net.prefix_len() <= 28 && net.addr() == net.network();
        match (v4, v6, words.next()) {
            (Some(v4), None, None) if usable(&v4) => found.push(Subnet { v4, v6: None }),
            (Some(v4), Some(Ok(v6)), None) if usable(&v4) && v6.prefix_len() <= 64 => {
                found.push(Subnet { v4, v6: Some(v6) });
            }
            _ => reading.error(
                written.at,
                format!("\"{}\" is not a network: write \"10.90.0.0/23\" or \"10.90.0.0/23 fd00:90::/64\"", written.value),
            ),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn groups(text: &str) -> Result<Groups, String> {
        let text = format!("[address]\nipv4 = \"192.0.2.1\"\n{text}");
        Config::parse(Path::new("n.toml"), &text)
            .map(|config| config.groups)
            .map_err(|broken| broken.to_string())
    }

    #[test]
    fn groups_start_from_the_default_one() {
        let groups = groups(
            "[groups.default]\nmemory = \"64MiB\"\nsubnets = [\"10.1.0.0/24\"]\n[groups.students]\ncpus = 0.5\ndisk = \"none\"\nsleep_after = \"never\"\negress = \"internet\"\n",
        )
        .unwrap();
        let (name, students) = groups.of(Some("students"));
        assert_eq!(name, "students");
        assert_eq!(
            (
                students.memory_bytes,
                students.cpu_millis,
                students.disk_bytes
            ),
            (64 << 20, 500, None)
        );
        assert_eq!(
            (students.sleep_after, students.egress),
            (None, Egress::Internet)
        );
        assert!(students.subnets.is_empty(), "a network is one group's");
        assert_eq!(groups.of(Some("nobody")).0, DEFAULT);
        assert_eq!(groups.of(None).1.subnets.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, told) in [
            ("[groups.a]\nmemory = \"1KiB\"", "at least \"16MiB\""),
            ("[groups.a]\nmemory = \"lots\"", "a size such as"),
            ("[groups.a]\ndoze_after = \"soon\"", "a time such as"),
            ("[groups.a]\negress = \"all\"", "\"none\" or \"internet\""),
            (
                "[groups.a]\nsubnets = [\"10.0.0.1/24\"]",
                "is not a network",
            ),
            ("[groups.a]\nparent = \"eth0.30\"", "needs `subnets`"),
            ("[groups.A]\n", "can't be a group"),
            ("[groups.a]\ncpus = 0", "between"),
        ] {
            let error = groups(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
