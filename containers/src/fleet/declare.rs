//! What the files say of a site, and what its container is to be made from.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use common::Backend;

use super::{Fleet, unix_now};
use crate::{
    spec::Spec,
    tenant::{Tenant, Times},
    walls,
    work::Making,
};

/// After the files, what is in them.
const DISCARD_AFTER: Duration = Duration::from_secs(30);
/// A whole zone that is gone may be a folder being moved: its sites' files wait this long.
const ZONE_GONE: Duration = Duration::from_secs(86_400);

/// What the files say of a site there is something of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declared {
    /// It is a container, though it may be one that can't be made just now.
    Container,
    /// It is something else now: a redirect for a while, perhaps. Its files stay.
    Elsewhere,
    /// Its zone has it no more.
    Gone,
    /// Its whole zone is gone.
    ZoneGone,
}

impl Declared {
    pub(super) fn note(self, tenant: &mut Tenant, now: Instant) {
        let kept = match self {
            Self::Container => {
                tenant.undeclared = None;
                return;
            }
            Self::Elsewhere => None,
            Self::Gone => Some(DISCARD_AFTER),
            Self::ZoneGone => Some(ZONE_GONE),
        };
        let since = tenant.undeclared.map_or(now, |(since, _)| since);
        tenant.undeclared = Some((since, kept));
    }
}

fn read_secret(file: &std::path::Path) -> Result<String, String> {
    const MOST: u64 = 32_768;
    let meta = std::fs::metadata(file).map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("it is no file".to_owned());
    }
    if meta.len() > MOST {
        return Err(format!("the file is larger than {MOST} octets"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.contains('\0') {
        return Err("the file holds a NUL".to_owned());
    }
    Ok(text.to_owned())
}

impl Fleet {
    /// Takes the declarations of now for every site there is something of.
    pub(super) fn declared(&mut self) {
        let now = Instant::now();
        let sites: Vec<Arc<str>> = self.tenants.keys().cloned().collect();
        for site in sites {
            if let Some(mut tenant) = self.tenants.remove(&site) {
                let declared = self.declare(&site, &mut tenant);
                declared.note(&mut tenant, now);
                self.tenants.insert(Arc::clone(&site), tenant);
            }
            self.kick(&site);
        }
        self.save();
    }

    /// What a site is to be made from by the registry of now.
    pub(super) fn declare(&mut self, site: &Arc<str>, tenant: &mut Tenant) -> Declared {
        let before = tenant.making.take();
        tenant.misdeclared = None;
        tenant.had_database = self.leases.get(site).is_some_and(|lease| lease.database);
        let registry = self.published.load();
        let route = registry.route(site).filter(|route| {
            !route.foreign && *route.zone.origin.child(&route.site.name).as_str() == **site
        });
        let Some(route) = route else {
            let zone = site
                .split_once('.')
                .and_then(|(_, zone)| registry.zone(zone));
            return if zone.is_some() {
                Declared::Gone
            } else {
                Declared::ZoneGone
            };
        };
        let Backend::Container(own) = &route.site.backend else {
            return Declared::Elsewhere;
        };
        let own = own.as_deref().cloned().unwrap_or_default();
        let (name, group) = registry.groups.of(route.site.group.as_deref());
        let lease = match self
            .leases
            .lease(site, name, group, &self.config, unix_now())
        {
            Ok(lease) => lease,
            Err(error) => {
                tenant.misdeclared = Some(error.to_string());
                // What runs goes on running.
                tenant.making = before;
                return Declared::Container;
            }
        };
        let Some(network) = self.leases.network(&lease.network).cloned() else {
            return Declared::Container;
        };
        let mut environment: BTreeMap<String, String> = own.environment.clone();
        if let Some(database) = self.work.database.as_ref().filter(|_| own.database) {
            environment.extend(database.environment(site, network.gateway4()));
        }
        for (variable, file) in &own.secrets {
            match read_secret(file) {
                Ok(value) => drop(environment.insert(variable.clone(), value)),
                Err(error) => {
                    tenant.misdeclared = Some(format!(
                        "the secret {variable} in {}: {error}",
                        file.display()
                    ));
                    tenant.making = before;
                    return Declared::Container;
                }
            }
        }
        let bridged = network.parent.is_none();
        let spec = Spec {
            site: Arc::clone(site),
            image: own.image.unwrap_or_else(|| group.image.clone()),
            command: own.command,
            port: own.port.unwrap_or(group.port),
            environment: environment.into_iter().collect(),
            uid: lease.uid,
            memory_bytes: group.memory_bytes,
            cpu_millis: group.cpu_millis,
            pids: group.pids,
            ipv4: network.at4(lease.index),
            ipv6: network.at6(lease.index),
            mac: bridged.then(|| walls::mac(network.at4(lease.index))),
            // Left to itself the engine would ask the machine's own resolvers for a site that may reach
            // nobody, which is a way out: the gateway's port 53 is behind the walls.
            resolvers: if network.internet {
                self.work.networks.resolvers.clone()
            } else {
                vec![network.gateway4().into()]
            },
            network: network.name.clone(),
            files: self.work.folders.files(site),
            scratch: self.work.folders.scratch(site),
        };
        if before.as_ref().is_some_and(|before| *before.spec != spec) {
            // What was wrong may be mended by this.
            tenant.forgive();
        }
        tenant.times = Times::of(group);
        if own.database && network.parent.is_some() {
            tenant.misdeclared = Some(
                "a site on a VLAN can't reach the shared database: its group has `parent`"
                    .to_owned(),
            );
            tenant.making = before;
            return Declared::Container;
        }
        if own.database {
            self.leases.note_database(site);
            tenant.had_database = true;
        }
        tenant.making = Some(Making {
            digest: spec.digest().into(),
            spec: spec.into(),
            network,
            quota: group.disk_bytes,
            database: own.database,
            ready_within: group.ready_within,
        });
        Declared::Container
    }

    /// Sites that hold a lease and have no container: their disks are mounted again after a restart of
    /// the machine, and the files of those declared no more go to the bin.
    pub(super) fn adopt_leases(&mut self, now: Instant) {
        let leased: Vec<Arc<str>> = self
            .leases
            .sites()
            .filter(|(site, lease)| lease.released.is_none() && !self.tenants.contains_key(*site))
            .map(|(site, _)| Arc::clone(site))
            .collect();
        let mut makings = Vec::new();
        for site in leased {
            let mut tenant = Tenant::new(now);
            let declared = self.declare(&site, &mut tenant);
            declared.note(&mut tenant, now);
            makings.extend(tenant.making.clone());
            self.tenants.insert(Arc::clone(&site), tenant);
            self.tell(&site);
        }
        let work = Arc::clone(&self.work);
        tokio::spawn(async move {
            for making in makings {
                if let Err(error) = work.ready_files(&making, true).await {
                    tracing::error!(site = %making.spec.site, %error, "can't make a site's files ready");
                }
            }
        });
    }
}
