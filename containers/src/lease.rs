//! What a site holds for as long as it is declared, and a while longer: its uid, and its place in a
//! network. Kept in `state/leases.json`, so that a site is the same tenant after every restart.
//!
//! A uid is never given twice. An address kept for a removed site is given away only when its network
//! has no other left, and none within a day of its release or of its site's move to another network:
//! nothing may still be talking to the one who had it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{
    containers::Containers,
    durable::{self, Access},
    group::{Egress, Group, Subnet},
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::walls;

/// Sites in one network: a bridge has 1,023 ports, and broadcasts grow with their number.
const MOST_SITES: u32 = 500;
/// The first addresses of a network are the gateway's and ours.
const FIRST_SITE: u32 = 16;
/// Before an address is given to another site.
const QUARANTINE_SECONDS: u64 = 86_400;

/// All leases of this instance.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Leases {
    /// Tells our containers, networks and rules from those of another instance on the same engine.
    pub(crate) instance: String,
    next_uid: u32,
    networks: BTreeMap<String, NetworkLease>,
    sites: BTreeMap<Arc<str>, Lease>,
    /// Addresses that rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    vacated: Vec<Vacated>,
    #[serde(skip)]
    path: PathBuf,
    #[serde(skip)]
    changed: bool,
}

/// A network of some sites of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkLease {
    pub(crate) name: String,
    pub(crate) group: String,
    /// The bridge's name as the kernel knows it.
    pub(crate) interface: String,
    pub(crate) v4: Ipv4Net,
    pub(crate) v6: Option<Ipv6Net>,
    pub(crate) internet: bool,
    /// The VLAN it sits on instead of a bridge.
    pub(crate) parent: Option<String>,
}

/// What one site holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) uid: u32,
    pub(crate) network: String,
    /// Its place in the network.
    pub(crate) index: u32,
    /// When it was given back, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) released: Option<u64>,
    /// When somebody last looked, in seconds since 1970.
    #[serde(default)]
    pub(crate) last_active: u64,
    /// Whether it has had a database, which goes when it goes.
    #[serde(default)]
    pub(crate) database: bool,
}

/// The address of a site that has moved to another network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Vacated {
    site: Arc<str>,
    address: Ipv4Addr,
    /// When, in seconds since 1970.
    at: u64,
}

/// Why a site gets no lease.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// Every network is full.
    #[error(
        "no address is free for a site of group {0}: give the group more `subnets`, or [containers] a larger `subnet4`"
    )]
    Full(String),
}

impl NetworkLease {
    /// The server's own address in it.
    pub(crate) fn gateway4(&self) -> Ipv4Addr {
        self.at4(1)
    }

    pub(crate) fn gateway6(&self) -> Option<Ipv6Addr> {
        let net = self.v6?;
        Some(Ipv6Addr::from_bits(net.network().to_bits() | 1))
    }

    pub(crate) fn at4(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.v4.network().to_bits().wrapping_add(index))
    }

    fn index(&self, address: Ipv4Addr) -> Option<u32> {
        let within = self.v4.contains(&address);
        within.then(|| address.to_bits() - self.v4.network().to_bits())
    }

    /// The IPv4 address in the network's prefix: the walls know one by the other.
    pub(crate) fn at6(&self, index: u32) -> Option<Ipv6Addr> {
        self.v6.map(|net| walls::address6(net, self.at4(index)))
    }

    /// The places of sites.
    pub(crate) fn places(&self) -> std::ops::Range<u32> {
        let hosts = u32::try_from(self.v4.hosts().count()).unwrap_or(u32::MAX);
        // The last host's index is their number: the network's own address is index 0.
        FIRST_SITE..hosts.saturating_add(1).min(FIRST_SITE + MOST_SITES)
    }
}

impl Leases {
    /// Reads the leases of a state folder; a new folder is a new instance.
    ///
    /// # Errors
    /// The file is there and can't be read: guessing would give one site another's files.
    pub(crate) fn open(state: &Path, config: &Containers) -> io::Result<Self> {
        let path = state.join("leases.json");
        let read = match std::fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice::<Self>(&bytes).map_err(io::Error::other)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(read) = read {
            return Ok(Self {
                path,
                // A default that has grown is that of new sites; those there are keep what they have.
                next_uid: read.next_uid.max(config.first_uid),
                ..read
            });
        }
        let mut bytes = [0; 3];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        let mut leases = Self {
            instance: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            next_uid: config.first_uid,
            networks: BTreeMap::new(),
            sites: BTreeMap::new(),
            vacated: Vec::new(),
            path,
            changed: true,
        };
        leases.save()?;
        Ok(leases)
    }

    /// Writes what changed.
    pub(crate) fn save(&mut self) -> io::Result<()> {
        if self.changed {
            std::fs::create_dir_all(self.path.parent().unwrap_or(Path::new(".")))?;
            let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
            durable::replace(&self.path, &text, Access::Owner)?;
            self.changed = false;
        }
        Ok(())
    }

    pub(crate) fn network(&self, name: &str) -> Option<&NetworkLease> {
        self.networks.get(name)
    }

    pub(crate) fn networks(&self) -> impl Iterator<Item = &NetworkLease> {
        self.networks.values()
    }

    pub(crate) fn get(&self, site: &str) -> Option<&Lease> {
        self.sites.get(site)
    }

    pub(crate) fn sites(&self) -> impl Iterator<Item = (&Arc<str>, &Lease)> {
        self.sites.iter()
    }

    /// Notes when somebody last looked; kept with the next save.
    pub(crate) fn note_activity(&mut self, site: &str, now: u64) {
        if let Some(lease) = self.sites.get_mut(site)
            && lease.last_active != now
        {
            lease.last_active = now;
            self.changed = true;
        }
    }

    /// Notes that a site has a database.
    pub(crate) fn note_database(&mut self, site: &str) {
        if let Some(lease) = self.sites.get_mut(site)
            && !lease.database
        {
            lease.database = true;
            self.changed = true;
        }
    }

    /// Gives a lease back; its uid and place stay its own for a while.
    pub(crate) fn release(&mut self, site: &str, now: u64) {
        if let Some(lease) = self.sites.get_mut(site) {
            lease.released = Some(now);
            lease.database = false;
            self.changed = true;
        }
    }

    /// Forgets leases released before a time.
    pub(crate) fn forget(&mut self, before: u64) {
        let known = self.sites.len();
        self.sites
            .retain(|_, lease| lease.released.is_none_or(|released| released >= before));
        self.changed |= self.sites.len() != known;
    }

    /// The names of networks that have a site, or keep a place for one that may come back.
    pub(crate) fn used_networks(&self) -> BTreeSet<String> {
        let sites = self.sites.values();
        sites.map(|lease| lease.network.clone()).collect()
    }

    /// Forgets networks that are not `kept`, and that addresses rested.
    pub(crate) fn forget_networks(&mut self, now: u64, kept: impl Fn(&str) -> bool) {
        let known = (self.networks.len(), self.vacated.len());
        self.networks.retain(|name, _| kept(name));
        self.vacated.retain(|old| old.rests(now));
        self.changed |= (self.networks.len(), self.vacated.len()) != known;
    }

    /// The lease of a site in its group: the one it has, where that still fits, or a new place.
    ///
    /// # Errors
    /// No network has room.
    pub(crate) fn lease(
        &mut self,
        site: &Arc<str>,
        name: &str,
        group: &Group,
        config: &Containers,
        now: u64,
    ) -> Result<Lease, LeaseError> {
        if let Some(lease) = self.sites.get_mut(site) {
            let network = self.networks.get(&lease.network);
            if network.is_some_and(|network| fits(network, name, group, config)) {
                if lease.released.take().is_some() {
                    self.changed = true;
                }
                return Ok(lease.clone());
            }
        }
        let (network, index) = self
            .old_place(site, name, group, config, now)
            .or_else(|| self.free_place(name, group, config, now))
            .or_else(|| {
                self.new_network(name, group, config, now)?;
                self.free_place(name, group, config, now)
            })
            .ok_or_else(|| LeaseError::Full(name.to_owned()))?;
        let uid = match self.sites.get(site) {
            Some(lease) => lease.uid,
            None => {
                self.next_uid += 1;
                self.next_uid - 1
            }
        };
        let lease = Lease {
            uid,
            network,
            index,
            released: None,
            last_active: now,
            database: self.sites.get(site).is_some_and(|lease| lease.database),
        };
        let old = self.sites.insert(Arc::clone(site), lease.clone());
        if let Some(old) = old
            && let Some(network) = self.networks.get(&old.network)
        {
            self.vacated.push(Vacated {
                site: Arc::clone(site),
                address: network.at4(old.index),
                at: old.released.unwrap_or(now),
            });
        }
        self.changed = true;
        Ok(lease)
    }

    /// The place a site has moved from, where it fits again.
    fn old_place(
        &mut self,
        site: &Arc<str>,
        name: &str,
        group: &Group,
        config: &Containers,
        now: u64,
    ) -> Option<(String, u32)> {
        let fitting = |network: &&NetworkLease| fits(network, name, group, config);
        let place = |old: &Vacated| {
            let mut networks = self.networks.values().filter(fitting);
            networks.find_map(|it| Some((it.name.clone(), it.index(old.address)?)))
        };
        // One that rests no more may be another's.
        let own = |old: &Vacated| old.site == *site && old.rests(now);
        let mut vacated = self.vacated.iter().enumerate();
        let (at, place) =
            vacated.find_map(|(at, old)| Some((at, place(old).filter(|_| own(old))?)))?;
        self.vacated.swap_remove(at);
        Some(place)
    }

    /// A free place in a network there is: the next never used, or the one released longest ago.
    fn free_place(
        &mut self,
        name: &str,
        group: &Group,
        config: &Containers,
        now: u64,
    ) -> Option<(String, u32)> {
        let fitting = |network: &&NetworkLease| fits(network, name, group, config);
        for network in self.networks.values().filter(fitting) {
            let taken: BTreeSet<u32> = self
                .sites
                .values()
                .filter(|lease| lease.network == network.name)
                .map(|lease| lease.index)
                .chain(self.resting(now).filter_map(|it| network.index(it)))
                .collect();
            // After the last one taken, so that a forgotten lease's place rests the longest.
            let after = taken.last().map_or(FIRST_SITE, |last| last + 1);
            let places = network.places();
            let free = (after..places.end)
                .next()
                .or_else(|| places.clone().find(|index| !taken.contains(index)));
            if let Some(index) = free {
                return Some((network.name.clone(), index));
            }
        }
        let names: BTreeSet<String> = self
            .networks
            .values()
            .filter(fitting)
            .map(|network| network.name.clone())
            .collect();
        let (site, _) = self
            .sites
            .iter()
            .filter(|(_, lease)| names.contains(&lease.network))
            .filter_map(|(site, lease)| Some((Arc::clone(site), lease.released?)))
            .min_by_key(|(_, released)| *released)
            .filter(|(_, released)| released + QUARANTINE_SECONDS < now)?;
        let lease = self.sites.remove(&site)?;
        Some((lease.network, lease.index))
    }

    fn resting(&self, now: u64) -> impl Iterator<Item = Ipv4Addr> {
        let resting = self.vacated.iter().filter(move |old| old.rests(now));
        resting.map(|old| old.address)
    }

    fn new_network(
        &mut self,
        name: &str,
        group: &Group,
        config: &Containers,
        now: u64,
    ) -> Option<()> {
        let overlaps = |subnet: &Subnet| {
            self.networks.values().any(|network| {
                network.v4.contains(&subnet.v4.network())
                    || subnet.v4.contains(&network.v4.network())
            })
        };
        let subnet = if group.subnets.is_empty() {
            let rests = |subnet: &Subnet| self.resting(now).any(|it| subnet.v4.contains(&it));
            let reserved = |subnet: &Subnet| overlaps(subnet) || rests(subnet);
            let v4 = config.subnet4.subnets(23).ok()?;
            let v6 = config.subnet6.subnets(64).ok()?;
            v4.zip(v6)
                .map(|(v4, v6)| Subnet { v4, v6: Some(v6) })
                .find(|subnet| !reserved(subnet))?
        } else {
            group
                .subnets
                .iter()
                .copied()
                .find(|subnet| !overlaps(subnet))?
        };
        let number = (0..10_000_u32).find(|number| {
            let interface = self.interface(*number);
            !self
                .networks
                .values()
                .any(|network| network.interface == interface)
        })?;
        let network = NetworkLease {
            name: format!("nuage-{}-{name}-{number}", self.instance),
            group: name.to_owned(),
            interface: self.interface(number),
            v4: subnet.v4,
            v6: subnet.v6,
            internet: group.egress == Egress::Internet,
            parent: group.parent.clone(),
        };
        self.networks.insert(network.name.clone(), network);
        self.changed = true;
        Some(())
    }

    /// At most 15 octets: IFNAMSIZ.
    fn interface(&self, number: u32) -> String {
        format!("nu{}-{number}", self.instance)
    }
}

impl Vacated {
    fn rests(&self, now: u64) -> bool {
        // Also by a clock that was ahead.
        now.abs_diff(self.at) <= QUARANTINE_SECONDS
    }
}

/// Whether a network is what the files say of a group now.
fn fits(network: &NetworkLease, name: &str, group: &Group, config: &Containers) -> bool {
    let declared = if group.subnets.is_empty() {
        config.subnet4.contains(&network.v4)
    } else {
        group
            .subnets
            .iter()
            .any(|subnet| subnet.v4 == network.v4 && subnet.v6 == network.v6)
    };
    declared
        && network.group == name
        && network.parent == group.parent
        && network.internet == (group.egress == Egress::Internet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::Config;

    fn config(text: &str) -> Config {
        let text = format!("[address]\nipv4 = \"192.0.2.1\"\n{text}");
        Config::parse(Path::new("n.toml"), &text).unwrap()
    }

    struct World {
        config: Config,
        leases: Leases,
        _state: tempfile::TempDir,
    }

    impl World {
        fn new(text: &str) -> Self {
            let state = tempfile::tempdir().unwrap();
            let config = config(text);
            let leases = Leases::open(state.path(), &config.containers).unwrap();
            Self {
                config,
                leases,
                _state: state,
            }
        }

        fn lease(&mut self, site: &str, group: &str, now: u64) -> Result<Lease, LeaseError> {
            let (name, group) = self.config.groups.of(Some(group));
            self.leases
                .lease(&site.into(), name, group, &self.config.containers, now)
        }
    }

    #[test]
    fn a_site_keeps_its_place_over_restarts() {
        let mut world = World::new("");
        let first = world.lease("a.w.example", "default", 1).unwrap();
        let second = world.lease("b.w.example", "default", 1).unwrap();
        assert_eq!((first.index, second.index), (16, 17));
        assert_ne!(first.uid, second.uid);
        world.leases.save().unwrap();
        let again = Leases::open(world._state.path(), &world.config.containers).unwrap();
        assert_eq!(again.get("b.w.example"), Some(&second));
        assert_eq!(again.instance, world.leases.instance);
        let network = again.network(&first.network).unwrap();
        assert_eq!(network.at4(16).to_string(), "10.89.0.16");
        assert_eq!(
            network.at6(16).unwrap().to_string(),
            "fd4e:7561:6765::a59:10"
        );
    }

    #[test]
    fn five_hundred_to_a_network_and_groups_apart() {
        let mut world = World::new("[groups.students]\n");
        let mut networks = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for number in 0..900 {
            let lease = world.lease(&format!("s{number}"), "default", 1).unwrap();
            let network = world.leases.network(&lease.network).unwrap();
            assert!(network.v4.contains(&network.at4(lease.index)));
            assert!(addresses.insert(network.at4(lease.index)));
            networks.insert(lease.network);
        }
        assert_eq!(networks.len(), 2);
        let other = world.lease("x", "students", 1).unwrap();
        assert!(!networks.contains(&other.network));
    }

    #[test]
    fn an_address_rests_before_another_site_gets_it() {
        let mut world = World::new("[groups.default]\nsubnets = [\"10.1.0.0/27\"]\n");
        for number in 0..15 {
            world.lease(&format!("s{number}"), "default", 1).unwrap();
        }
        assert!(world.lease("late", "default", 2).is_err());
        let given_back = world.leases.get("s3").unwrap().clone();
        world.leases.release("s3", 10);
        assert!(world.lease("late", "default", 20).is_err());
        let again = world.lease("s3", "default", 20).unwrap();
        assert_eq!((again.index, again.uid), (given_back.index, given_back.uid));
        world.leases.release("s3", 30);
        let late = world
            .lease("late", "default", 31 + QUARANTINE_SECONDS)
            .unwrap();
        assert_eq!(late.index, given_back.index);
        assert_ne!(
            late.uid, given_back.uid,
            "a uid owns files: it is never given twice"
        );
    }

    #[test]
    fn a_group_that_moves_takes_its_sites_along() {
        let mut world = World::new("");
        let before = world.lease("a", "default", 1).unwrap();
        world.config = config("[groups.default]\negress = \"internet\"\n");
        let after = world.lease("a", "default", 2).unwrap();
        assert_ne!(before.network, after.network);
        assert_eq!(before.uid, after.uid);
        let used = world.leases.used_networks();
        assert_eq!(used, [after.network.clone()].into());
        let subnet = world.leases.network(&before.network).unwrap().v4;
        world.leases.forget_networks(3, |name| used.contains(name));
        assert_eq!(world.leases.network(&before.network), None);
        // Nor does another network get its addresses at once.
        world.config = config("[groups.default]\negress = \"internet\"\n[groups.other]\n");
        for (now, again) in [(4, false), (4 + QUARANTINE_SECONDS, true)] {
            let other = world.lease(&format!("b{now}"), "other", now).unwrap();
            let network = world.leases.network(&other.network).unwrap();
            assert_eq!(network.v4 == subnet, again, "{now}");
            world.leases.release(&format!("b{now}"), now);
            world.leases.forget(u64::MAX);
            world
                .leases
                .forget_networks(now, |name| used.contains(name));
        }
    }

    #[test]
    fn the_address_of_a_site_that_moved_rests_too() {
        let mut world =
            World::new("[groups.default]\nsubnets = [\"10.1.0.0/27\"]\n[groups.other]\n");
        let before = world.lease("s0", "default", 1).unwrap();
        for number in 1..15 {
            world.lease(&format!("s{number}"), "default", 1).unwrap();
        }
        world.lease("s0", "other", 10).unwrap();
        let late = world.lease("late", "default", 20);
        assert!(late.is_err(), "its container may still run: {late:?}");
        world.leases.save().unwrap();
        world.leases = Leases::open(world._state.path(), &world.config.containers).unwrap();
        assert!(world.lease("late", "default", 20).is_err(), "kept on disk");
        let back = world.lease("s0", "default", 30).unwrap();
        assert_eq!((back.network, back.index), (before.network, before.index));
        world.lease("s0", "other", 40).unwrap();
        let late = world.lease("late", "default", 41 + QUARANTINE_SECONDS);
        assert_eq!(late.unwrap().index, before.index);
    }

    #[test]
    fn a_higher_first_uid_is_that_of_new_sites() {
        let mut world = World::new("[containers]\nfirst_uid = 200000\n");
        let before = world.lease("a", "default", 1).unwrap();
        world.leases.save().unwrap();
        world.config = config("");
        // Beyond every subordinate uid useradd gives (SUB_UID_MAX).
        assert!(world.config.containers.first_uid > 600_100_000);
        world.leases = Leases::open(world._state.path(), &world.config.containers).unwrap();
        assert_eq!(world.lease("a", "default", 2).unwrap().uid, before.uid);
        let new = world.lease("b", "default", 2).unwrap();
        assert_eq!(new.uid, world.config.containers.first_uid);
        // A lower one is no reason to give a uid again.
        world.leases.save().unwrap();
        world.config = config("[containers]\nfirst_uid = 200000\n");
        world.leases = Leases::open(world._state.path(), &world.config.containers).unwrap();
        assert!(world.lease("c", "default", 3).unwrap().uid > new.uid);
    }
}
