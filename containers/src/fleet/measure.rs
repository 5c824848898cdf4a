//! How much memory and disk sites take, and how many more would fit.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use common::Backend;
use serde::{Deserialize, Serialize};

use super::Fleet;
use crate::{engine::Status, memory};

/// What an awake site is taken for before any has been measured.
pub(super) const FIRST_GUESS: u64 = (10 << 20) + memory::OVERHEAD;
/// The least any is taken for.
const LEAST_GUESS: u64 = 4 << 20;
/// A disk with less than this free is full.
const FULL_BELOW: u64 = 256 << 10;

/// What one look at a site's cgroup and disk said.
pub(super) struct Sample {
    site: Arc<str>,
    cgroup: Option<std::path::PathBuf>,
    bytes: Option<u64>,
    full: bool,
}

/// How much memory there is and what takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Memory of this machine (or its cgroup), in octets.
    pub host_bytes: u64,
    /// Memory for sites, in octets.
    pub budget_bytes: u64,
    /// Memory sites take, with what the engine takes for them, in octets.
    pub used_bytes: u64,
    /// What one more site is expected to take, in octets.
    pub site_bytes: u64,
    /// Sites declared to be containers.
    pub declared: u64,
    /// Sites by state; those that are not here are archived.
    pub states: BTreeMap<String, u64>,
    /// How many more could be awake at once.
    pub more: u64,
    /// Each site that takes memory, with its octets; the largest first.
    pub sites: Vec<(Arc<str>, u64)>,
}

impl Fleet {
    /// Reads memory and disks of what runs, where nobody waits for it.
    pub(super) fn sample(&mut self) {
        let running: Vec<_> = self
            .tenants
            .iter()
            .filter(|(_, tenant)| tenant.ready || tenant.status() == Some(Status::Paused))
            .filter_map(|(site, tenant)| {
                let seen = tenant.seen.as_ref()?;
                let quota = tenant
                    .making
                    .as_ref()
                    .is_some_and(|making| making.quota.is_some());
                Some((
                    Arc::clone(site),
                    seen.id.clone(),
                    tenant.cgroup.clone(),
                    quota,
                ))
            })
            .collect();
        let work = Arc::clone(&self.work);
        self.samples.spawn(async move {
            let mut found = Vec::with_capacity(running.len());
            for (site, id, cgroup, quota) in running {
                let cgroup = match cgroup {
                    Some(cgroup) => Some(cgroup),
                    None => match work.engine.pid(&id).await {
                        Ok(Some(pid)) => memory::cgroup_of(&pid.to_string()),
                        _ => None,
                    },
                };
                let folder = work.folders.site(&site);
                let read = tokio::task::spawn_blocking(move || {
                    let bytes = cgroup.as_deref().and_then(memory::used);
                    let full = quota
                        && crate::disk::room(&folder).is_ok_and(|(_, free)| free < FULL_BELOW);
                    Sample {
                        site,
                        cgroup,
                        bytes,
                        full,
                    }
                });
                found.extend(read.await);
            }
            found
        });
        self.wakes.capacity(&self.capacity());
    }

    pub(super) fn sampled(&mut self, samples: Vec<Sample>) {
        let (mut sum, mut count) = (0_u64, 0_u64);
        for sample in samples {
            let Some(tenant) = self.tenants.get_mut(&sample.site) else {
                continue;
            };
            tenant.cgroup = sample.cgroup;
            let took = sample
                .bytes
                .map(|bytes| bytes.max(LEAST_GUESS) + memory::OVERHEAD);
            if tenant.takes_memory() {
                tenant.bytes = took;
            }
            if let Some(took) = took {
                sum += took;
                count += 1;
            }
            if tenant.full != sample.full {
                tenant.full = sample.full;
                self.tell(&sample.site);
            }
        }
        // A handful says little about the next one.
        if count > 0 {
            self.average = (sum + FIRST_GUESS * 4) / (count + 4);
        }
    }

    pub(super) fn capacity(&self) -> Capacity {
        let now = Instant::now();
        let registry = self.published.load();
        let declared = registry
            .zones
            .iter()
            .flat_map(|zone| zone.sites.iter())
            .filter(|site| matches!(site.backend, Backend::Container(_)))
            .count();
        let mut states = BTreeMap::new();
        for live in self.known.values() {
            *states.entry(live.state.word().to_owned()).or_insert(0) += 1;
        }
        let mut sites: Vec<(Arc<str>, u64)> = self
            .taking(now)
            .into_iter()
            .map(|taking| (Arc::clone(taking.site), taking.bytes))
            .collect();
        sites.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let used: u64 = sites.iter().map(|(_, bytes)| bytes).sum();
        Capacity {
            host_bytes: memory::of_the_host(),
            budget_bytes: self.budget,
            used_bytes: used,
            site_bytes: self.average,
            declared: declared as u64,
            states,
            more: self.budget.saturating_sub(used) / self.average.max(1),
            sites,
        }
    }
}
