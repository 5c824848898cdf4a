//! The networks sites are on, and the walls around them: made together, looked after together.

use std::collections::HashSet;

use tokio::sync::Mutex;

use crate::{
    engine::Engine,
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
    /// Without a lease at the last look; gone at the next, unless one is made meanwhile.
    unleased: HashSet<String>,
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
        state.unleased.remove(&network.name);
        if !state.there.contains(&network.name) {
            engine.create_network(network).await?;
            state.there.insert(network.name.clone());
        }
        Ok(())
    }

    /// Takes what the engine has for what there is, removes networks of ours that hold no site, and
    /// puts the walls up again where somebody took them down.
    pub(crate) async fn resync(
        &self,
        leased: &[NetworkLease],
        engine: &dyn Engine,
    ) -> Result<(), WorkError> {
        let mut state = self.state.lock().await;
        let names = engine.networks().await?;
        for name in &names {
            if leased.iter().any(|network| network.name == *name) {
                state.unleased.remove(name);
            } else if !state.unleased.insert(name.clone()) {
                match engine.remove_network(name).await {
                    Ok(()) => tracing::info!(network = name, "removed: no site is on it"),
                    Err(error) => tracing::debug!(network = name, %error, "can't remove it yet"),
                }
            }
        }
        state.there = engine.networks().await?.into_iter().collect();
        state.known = true;
        // Those of before, and those found now: a container may run on either.
        let mut networks = state.walled.clone();
        // One that has just been made may not be in what we were told.
        networks
            .retain(|network| leased.contains(network) || !state.unleased.contains(&network.name));
        for network in leased {
            if state.there.contains(&network.name) && !networks.contains(network) {
                networks.push(network.clone());
            }
        }
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

    /// Takes down everything this instance has put up.
    pub(crate) async fn raze(&self, engine: &dyn Engine) -> Result<usize, WorkError> {
        let mut state = self.state.lock().await;
        let names = engine.networks().await?;
        for name in &names {
            engine.remove_network(name).await?;
        }
        walls::raze(&self.instance).await?;
        *state = Standing::default();
        Ok(names.len())
    }
}
