//! The networks sites are on, and the walls around them: made together, looked after together.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio::sync::Mutex;

use crate::{
    engine::{Engine, EngineError},
    lease::NetworkLease,
    walls::{self, Bridge, Walls},
    work::WorkError,
};

/// The networks that are there, behind their walls.
pub(crate) struct Networks {
    instance: String,
    /// For sites that may reach the internet.
    pub(crate) resolvers: Vec<std::net::IpAddr>,
    database_port: Option<u16>,
    /// Those of the last time.
    leased: Vec<NetworkLease>,
    state: Mutex<Standing>,
}

#[derive(Default)]
struct Standing {
    /// Whether the engine has been asked what is there.
    known: bool,
    /// Known to the engine.
    there: HashSet<String>,
    /// Those the walls speak of.
    walled: Vec<NetworkLease>,
    /// Without a site at the last look; removed at the next, unless one comes meanwhile. With
    /// whether it has been told that the engine refuses.
    unused: HashMap<String, bool>,
}

impl Networks {
    pub(crate) fn new(
        instance: &str,
        resolvers: Vec<std::net::IpAddr>,
        database_port: Option<u16>,
        leased: Vec<NetworkLease>,
    ) -> Self {
        Self {
            instance: instance.to_owned(),
            resolvers,
            database_port,
            leased,
            state: Mutex::default(),
        }
    }

    fn walls(&self, networks: &[NetworkLease]) -> Walls {
        let bridged = networks.iter().filter(|network| network.parent.is_none());
        let bridges = bridged.clone().map(|network| Bridge {
            interface: network.interface.clone(),
            subnet4: network.v4,
            gateway4: network.gateway4(),
            subnet6: network.v6,
            gateway6: network.gateway6(),
            internet: network.internet,
            database_port: self.database_port,
        });
        // Every place a site may have, so that a new site needs no new walls.
        let addresses = bridged
            .clone()
            .flat_map(|network| network.places().map(|index| network.at4(index)));
        Walls {
            id: self.instance.clone(),
            bridges: bridges.collect(),
            addresses: addresses.collect(),
            resolvers: self.resolvers.clone(),
        }
    }

    /// Makes sure a network is there and walled in.
    pub(crate) async fn ensure(
        &self,
        network: &NetworkLease,
        engine: &dyn Engine,
    ) -> Result<(), WorkError> {
        let mut state = self.state.lock().await;
        if !state.known {
            // Containers may run since before we started: their walls stand before anything else.
            state.there = engine.networks().await?.into_iter().collect();
            state.walled = self
                .leased
                .iter()
                .filter(|network| state.there.contains(&network.name))
                .cloned()
                .collect();
            if !state.walled.is_empty() {
                walls::raise(&self.walls(&state.walled)).await?;
            }
            state.known = true;
        }
        // Whatever was found before: a site has come to it.
        state.unused.remove(&network.name);
        if state.walled.contains(network) && state.there.contains(&network.name) {
            return Ok(());
        }
        // The walls first: no site is ever without them.
        if !state.walled.contains(network) {
            let mut networks = state.walled.clone();
            networks.retain(|other| other.name != network.name);
            networks.push(network.clone());
            walls::raise(&self.walls(&networks)).await?;
            state.walled = networks;
        }
        if !state.there.contains(&network.name) {
            engine.create_network(network).await?;
            state.there.insert(network.name.clone());
        }
        Ok(())
    }

    /// Whether the engine may have a network: yes, too, where that is not known just now.
    pub(crate) fn may_have(&self, name: &str) -> bool {
        let state = self.state.try_lock();
        !state.is_ok_and(|state| state.known && !state.there.contains(name))
    }

    /// Takes what the engine has for what there is, removes networks of ours that no site uses, and
    /// puts the walls up again where somebody took them down.
    pub(crate) async fn resync(
        &self,
        leased: &[NetworkLease],
        used: &BTreeSet<String>,
        engine: &dyn Engine,
    ) -> Result<(), WorkError> {
        let mut state = self.state.lock().await;
        let names = engine.networks().await?;
        for name in &names {
            if used.contains(name) {
                state.unused.remove(name);
                continue;
            }
            let Some(&told) = state.unused.get(name) else {
                state.unused.insert(name.clone(), false);
                continue;
            };
            match engine.remove_network(name).await {
                Ok(()) => tracing::info!(network = name, "removed: no site is on it"),
                Err(EngineError::Refused(why)) if !told => {
                    // A container is still on it, or the engine has lost count until its restart.
                    tracing::warn!(
                        network = name,
                        why,
                        "no site needs it, and the engine keeps it: so do we, and its walls"
                    );
                    state.unused.insert(name.clone(), true);
                }
                Err(error) => tracing::debug!(network = name, %error, "can't remove it yet"),
            }
        }
        let there: HashSet<String> = engine.networks().await?.into_iter().collect();
        state.unused.retain(|name, _| there.contains(name));
        let networks = to_wall(&state.walled, leased, &there);
        state.there = there;
        state.known = true;
        if networks.is_empty() {
            if !state.walled.is_empty() {
                walls::raze(&self.instance).await?;
                state.walled.clear();
            }
            return Ok(());
        }
        let walls = self.walls(&networks);
        if networks != state.walled || !walls::standing(&walls).await {
            walls::raise(&walls).await?;
            state.walled = networks;
        }
        Ok(())
    }

    /// Takes down everything this instance has put up. A network the engine keeps is told at the end.
    pub(crate) async fn raze(&self, engine: &dyn Engine) -> Result<usize, WorkError> {
        let mut state = self.state.lock().await;
        let names = engine.networks().await?;
        let mut razed = Ok(names.len());
        for name in &names {
            if let Err(error) = engine.remove_network(name).await {
                razed = Err(error.into());
            }
        }
        walls::raze(&self.instance).await?;
        *state = Standing::default();
        razed
    }
}

/// The networks to wall in: all the engine has, whether a lease still speaks of them or only the walls
/// of before do, since a container may run on any.
fn to_wall(
    walled: &[NetworkLease],
    leased: &[NetworkLease],
    there: &HashSet<String>,
) -> Vec<NetworkLease> {
    let found = leased.iter().filter(|network| !walled.contains(network));
    walled
        .iter()
        .chain(found)
        .filter(|network| there.contains(&network.name))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u8) -> NetworkLease {
        NetworkLease {
            name: format!("n{number}"),
            group: "default".to_owned(),
            interface: format!("nu-{number}"),
            v4: format!("10.89.{number}.0/24").parse().unwrap(),
            v6: None,
            internet: false,
            parent: None,
        }
    }

    #[test]
    fn walls_stand_as_long_as_the_engine_has_the_network() {
        let [left, kept, new, not_yet] = [0, 1, 2, 3].map(network);
        let there = ["n0", "n1", "n2"].map(str::to_owned).into();
        let walled = [left.clone(), kept.clone()];
        let leased = [kept.clone(), new.clone(), not_yet];
        assert_eq!(
            to_wall(&walled, &leased, &there),
            [left, kept.clone(), new.clone()]
        );
        let there = ["n1", "n2"].map(str::to_owned).into();
        assert_eq!(to_wall(&walled, &leased, &there), [kept, new]);
    }
}
