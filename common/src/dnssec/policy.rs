//! How long keys live and how long each step of a rollover waits.

use std::time::Duration;

use crate::{
    authority::Authority,
    group,
    table::{Reading, Table},
};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Below this, a key would be gone before it is known.
const SHORTEST_LIFETIME: Duration = HOUR;

/// `[dnssec]` of a zone that is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dnssec {
    /// How long a ZSK signs; `None` is until told otherwise.
    pub zsk_lifetime: Option<Duration>,
    /// How long a KSK is good; `None` is until told otherwise.
    pub ksk_lifetime: Option<Duration>,
    /// The TTL of our DS in the parent zone.
    pub ds_ttl: Duration,
}

impl Default for Dnssec {
    fn default() -> Self {
        Self {
            zsk_lifetime: Some(30 * DAY),
            ksk_lifetime: None,
            ds_ttl: DAY,
        }
    }
}

impl Dnssec {
    /// The table `[dnssec]`; `None` where it is missing or says `enabled = false`.
    pub(crate) fn read(root: &Table<'_>, reading: &mut Reading<'_>) -> Option<Self> {
        const KEYS: &[&str] = &["enabled", "zsk_lifetime", "ksk_lifetime", "ds_ttl"];
        let table = root.table("dnssec", KEYS, reading)?;
        let enabled = table.boolean("enabled", reading).unwrap_or(true);
        let mut dnssec = Self::default();
        for (key, place) in [
            ("zsk_lifetime", &mut dnssec.zsk_lifetime),
            ("ksk_lifetime", &mut dnssec.ksk_lifetime),
        ] {
            if table.quiet_string(key) == Some("never") {
                *place = None;
            } else if let Some(time) = group::duration(&table, key, reading) {
                if time < SHORTEST_LIFETIME {
                    reading.error(
                        table.at,
                        format!("`{key}` must be at least \"1h\", or \"never\""),
                    );
                }
                *place = Some(time);
            }
        }
        if let Some(time) = group::duration(&table, "ds_ttl", reading) {
            // RFC 2181 §8 allows 31 bits.
            if time.as_secs() > u64::from(u32::MAX >> 1) {
                reading.error(table.at, "`ds_ttl` must be at most 68 years");
            }
            dnssec.ds_ttl = time;
        }
        enabled.then_some(dnssec)
    }
}

/// The intervals of RFC 7583 (§2 and §3) for one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// TTL of the DNSKEY set (TTLkey).
    pub ttl_key: Duration,
    /// The longest TTL of anything signed (TTLsig).
    pub ttl_sig: Duration,
    /// Until every name server has a change (Dprp), ours and the parent's.
    pub propagation: Duration,
    /// Until everything is signed anew (Dsgn).
    pub signing: Duration,
    /// TTL of the DS set in the parent zone (TTLds).
    pub ds_ttl: Duration,
    /// How long a ZSK signs (Lzsk); `None` is until told otherwise.
    pub zsk_lifetime: Option<Duration>,
    /// How long a KSK is good (Lksk); `None` is until told otherwise.
    pub ksk_lifetime: Option<Duration>,
}

impl Policy {
    /// The policy of a zone whose DNSKEY set has `ttl_key` and where nothing has more than `ttl_sig`,
    /// both in seconds.
    pub fn new(dnssec: &Dnssec, ttl_key: u32, ttl_sig: u32) -> Self {
        Self {
            ttl_key: Duration::from_secs(ttl_key.into()),
            ttl_sig: Duration::from_secs(ttl_sig.into()),
            propagation: HOUR,
            signing: HOUR,
            ds_ttl: dnssec.ds_ttl,
            zsk_lifetime: dnssec.zsk_lifetime,
            ksk_lifetime: dnssec.ksk_lifetime,
        }
    }

    /// The policy of a zone whose DNSKEY set has the zone's own TTL.
    pub fn of(dnssec: &Dnssec, authority: &Authority) -> Self {
        Self::new(dnssec, authority.ttl, authority.longest_ttl())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::Config, zone};

    fn read(body: &str) -> Result<Option<Dnssec>, String> {
        let config =
            Config::parse(Path::new("n.toml"), "[address]\nipv4 = \"192.0.2.1\"\n").unwrap();
        let text = format!("origin = \"w.example\"\nnameservers = [\"ns1.w.example\"]\n{body}");
        let parsed = zone::parse(Path::new("w.example.toml"), &text, &config);
        let told: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
        parsed.zone.map(|zone| zone.dnssec).ok_or(told.join("\n"))
    }

    #[test]
    fn a_zone_is_signed_when_it_says_so() {
        assert_eq!(read(""), Ok(None));
        assert_eq!(read("[dnssec]\nenabled = false\n"), Ok(None));
        assert_eq!(
            read("[dnssec]\nenabled = true\n"),
            Ok(Some(Dnssec::default()))
        );
        let own =
            read("[dnssec]\nzsk_lifetime = \"never\"\nksk_lifetime = \"365d\"\nds_ttl = \"2d\"\n");
        assert_eq!(
            own,
            Ok(Some(Dnssec {
                zsk_lifetime: None,
                ksk_lifetime: Some(365 * DAY),
                ds_ttl: 2 * DAY,
            }))
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (body, told) in [
            ("[dnssec]\nenable = true\n", "did you mean \"enabled\"?"),
            ("[dnssec]\nenabled = \"yes\"\n", "must be true or false"),
            (
                "[dnssec]\nzsk_lifetime = \"30\"\n",
                "must be a time such as",
            ),
            ("[dnssec]\nzsk_lifetime = \"1min\"\n", "at least \"1h\""),
            (
                "[dnssec]\nksk_lifetime = \"0s\"\n",
                "must be a time such as",
            ),
            ("[dnssec]\nds_ttl = \"90years\"\n", "at most 68 years"),
            ("dnssec = true\n", "must be a table"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(told), "{body}: {error}");
        }
    }

    #[test]
    fn the_longest_ttl_counts() {
        let config =
            Config::parse(Path::new("n.toml"), "[address]\nipv4 = \"192.0.2.1\"\n").unwrap();
        let text = "origin = \"w.example\"\nnameservers = [\"ns1.w.example\"]\n[[records]]\nname = \"@\"\ntype = \"TXT\"\nttl = 7200\ndata = \"x\"\n";
        let zone = zone::parse(Path::new("w.example.toml"), text, &config)
            .zone
            .unwrap();
        let policy = Policy::of(&Dnssec::default(), &zone.authority);
        assert_eq!(
            (policy.ttl_key, policy.ttl_sig),
            (Duration::from_secs(300), 2 * HOUR)
        );
    }
}
