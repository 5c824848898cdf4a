//! Who may wake: memory is set aside before a site starts, and the least recently used make room.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Fleet;
use crate::{
    budget::{self, Room, Taking},
    engine::Status,
    plan::Level,
    tenant::Refusal,
};

/// How long a request may wait for others to make room.
const ROOM_WITHIN: Duration = Duration::from_secs(15);

impl Fleet {
    /// Sets memory aside for a site, or queues it until there is some.
    pub(super) fn admit(&mut self, site: &Arc<str>, now: Instant) {
        let takes = self
            .tenants
            .get(site)
            .is_some_and(|t| matches!(t.status(), Some(Status::Running | Status::Paused)));
        if takes {
            if let Some(tenant) = self.tenants.get_mut(site) {
                tenant.admitted = true;
            }
        } else if !self.queue.iter().any(|(queued, _)| queued == site) {
            self.queue.push_back((Arc::clone(site), now));
            self.serve_queue(now);
        }
    }

    /// Admits those that wait, in their order, as far as memory goes; asks idle ones to leave.
    pub(super) fn serve_queue(&mut self, now: Instant) {
        while let Some((site, since)) = self.queue.front().cloned() {
            let wanted = self
                .tenants
                .get(&site)
                .is_some_and(|tenant| tenant.level == Level::Awake && !tenant.admitted);
            if !wanted {
                self.queue.pop_front();
                continue;
            }
            let taking = self.taking(now);
            match budget::room(self.budget, self.average, &taking) {
                Room::Enough => {
                    self.queue.pop_front();
                    if let Some(tenant) = self.tenants.get_mut(&site) {
                        tenant.admitted = true;
                    }
                    self.kick(&site);
                    continue;
                }
                Room::After(leaving) => {
                    let leaving: Vec<Arc<str>> = leaving.into_iter().cloned().collect();
                    self.evict(&leaving);
                }
                Room::None => {}
            }
            if now.duration_since(since) < ROOM_WITHIN {
                return;
            }
            self.queue.pop_front();
            if let Some(tenant) = self.tenants.get_mut(&site) {
                tenant.level = Level::Asleep;
                tenant.answer(&Err(Refusal::Full));
                self.tell(&site);
            }
        }
    }

    /// Sites grow after they were let in: past the budget, the least recently used go.
    pub(super) fn keep_within_budget(&mut self, now: Instant) {
        let leaving = budget::excess(self.budget, &self.taking(now));
        let leaving: Vec<Arc<str>> = leaving.into_iter().cloned().collect();
        self.evict(&leaving);
    }

    pub(super) fn evict(&mut self, leaving: &[Arc<str>]) {
        for site in leaving {
            if let Some(tenant) = self.tenants.get_mut(site) {
                tenant.level = Level::Asleep;
            }
            self.wakes.evicted();
            self.kick(site);
        }
    }

    pub(super) fn taking(&self, now: Instant) -> Vec<Taking<&Arc<str>>> {
        self.tenants
            .iter()
            .filter(|(_, tenant)| tenant.takes_memory())
            .map(|(site, tenant)| Taking {
                site,
                bytes: tenant.bytes.unwrap_or(self.average),
                idle: now.duration_since(tenant.last_active),
                needed: tenant.needed(now),
                leaving: tenant.level < Level::Dozing || tenant.undeclared.is_some(),
            })
            .collect()
    }
}
