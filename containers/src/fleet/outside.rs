//! What the engine tells: containers that start, freeze and end without us, and everything it has.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Fleet, unix_now, with_last_lines};
use crate::{
    engine::{Event, EventKind, Found, Status},
    plan::{Level, Seen},
    tenant::{STEADY, Tenant},
};

/// A site someone used so lately is brought back at once when it dies.
const MISSED: Duration = Duration::from_secs(5);

impl Fleet {
    pub(super) fn event(&mut self, event: &Event) {
        let now = Instant::now();
        let Some(tenant) = self.tenants.get_mut(&event.site) else {
            return;
        };
        if let Some(died) = &tenant.busy {
            // Of our own doing, or the job finds out, or a look afterwards does.
            if event.kind == EventKind::Died {
                died.notify_one();
                tenant.doubt = true;
            }
            return;
        }
        let status = match event.kind {
            EventKind::Started | EventKind::Unpaused => Some(Status::Running),
            EventKind::Paused => Some(Status::Paused),
            EventKind::Died => Some(Status::Stopped),
            EventKind::Removed => None,
        };
        let Some(seen) = tenant.seen.as_mut().filter(|seen| seen.id == event.id) else {
            return;
        };
        let before = seen.status;
        if status == Some(before) {
            return;
        }
        // News may be heard late, and be of what a job did on its way: a frozen site is unfrozen to be
        // stopped.
        if event.at < tenant.settled {
            // A full slot holds the same wish.
            self.resync.try_send(()).unwrap_or_default();
            return;
        }
        tenant.known = now;
        match status {
            Some(status) => seen.status = status,
            None => tenant.seen = None,
        }
        self.changed_outside(&event.site, Some(before), now);
    }

    /// A container is not as we left it.
    pub(super) fn changed_outside(
        &mut self,
        site: &Arc<str>,
        before: Option<Status>,
        now: Instant,
    ) {
        let Some(tenant) = self.tenants.get_mut(site) else {
            return;
        };
        if tenant.status() == Some(Status::Paused) {
            tenant.frozen = Some(now);
        }
        let ended = !matches!(tenant.status(), Some(Status::Running | Status::Paused));
        if ended && matches!(before, Some(Status::Running | Status::Paused)) {
            tenant.ready = false;
            tenant.admitted = false;
            let missed = tenant.needed(now) || now.duration_since(tenant.last_active) < MISSED;
            let early = tenant
                .started
                .is_some_and(|at| now.duration_since(at) < STEADY);
            if early {
                tenant.failed("its container ended by itself".to_owned(), now);
                if let Some(seen) = &tenant.seen {
                    let (work, id, site) =
                        (Arc::clone(&self.work), seen.id.clone(), Arc::clone(site));
                    self.said
                        .spawn(async move { (site, work.last_lines(&id).await) });
                }
            } else {
                tenant.forgive();
            }
            tracing::warn!(%site, "a container ended that should be running");
            if missed {
                tenant.level = Level::Awake;
                self.admit(site, now);
            } else {
                tenant.level = Level::Asleep;
            }
        } else if tenant.status() == Some(Status::Running) {
            // Somebody started it by hand: it is ours to put to sleep again.
            tenant.ready = true;
            tenant.admitted = true;
            tenant.level = Level::Awake;
            tenant.last_active = now;
        }
        self.kick(site);
    }

    pub(super) fn said(&mut self, site: &Arc<str>, said: &str) {
        if let Some(tenant) = self.tenants.get_mut(site)
            && let Some(trouble) = &mut tenant.trouble
        {
            *trouble = with_last_lines(trouble, said);
        }
        self.tell(site);
    }

    /// Everything the engine has: adopts what runs, removes what nobody declares.
    pub(super) fn found(&mut self, asked: Instant, found: Vec<Found>) {
        let now = Instant::now();
        let first = !self.synced;
        self.synced = true;
        self.last_resync = now;
        let unix = unix_now();
        let mut met = HashSet::new();
        for container in found {
            let site = Arc::clone(&container.site);
            met.insert(Arc::clone(&site));
            let seen = Seen {
                id: container.id,
                digest: container.digest,
                status: container.status,
            };
            if let Some(tenant) = self.tenants.get_mut(&site) {
                // What has been learnt since the engine was asked is newer than its answer.
                let newer = tenant.busy.is_some() || tenant.known >= asked;
                if !newer && tenant.seen.as_ref() != Some(&seen) {
                    let before = tenant.status();
                    tenant.seen = Some(seen);
                    self.changed_outside(&site, before, now);
                }
                continue;
            }
            let mut tenant = Tenant::new(now);
            let declared = self.declare(&site, &mut tenant);
            declared.note(&mut tenant, now);
            (tenant.level, tenant.admitted, tenant.ready) = match seen.status {
                Status::Running => (Level::Awake, true, true),
                Status::Paused => (Level::Dozing, true, false),
                Status::Stopped => (Level::Asleep, false, false),
            };
            tenant.frozen = (seen.status == Status::Paused).then_some(now);
            // Another start than any before: the number only has to differ.
            tenant.generation = unix.wrapping_mul(1 << 20);
            if seen.status == Status::Stopped
                && let Some(lease) = self.leases.get(&site)
            {
                let idle = Duration::from_secs(unix.saturating_sub(lease.last_active));
                tenant.last_active = now.checked_sub(idle).unwrap_or(now);
            }
            tenant.seen = Some(seen);
            self.tenants.insert(Arc::clone(&site), tenant);
            self.kick(&site);
        }
        // What we thought was there and is not.
        let missing: Vec<(Arc<str>, Option<Status>)> = self
            .tenants
            .iter()
            .filter(|(site, tenant)| {
                let newer = tenant.busy.is_some() || tenant.known >= asked;
                !newer && tenant.seen.is_some() && !met.contains(*site)
            })
            .map(|(site, tenant)| (Arc::clone(site), tenant.status()))
            .collect();
        for (site, before) in missing {
            if let Some(tenant) = self.tenants.get_mut(&site) {
                tenant.seen = None;
            }
            self.changed_outside(&site, before, now);
        }
        if first {
            self.adopt_leases(now);
            self.networks();
            let awake = self.tenants.values().filter(|tenant| tenant.ready).count();
            tracing::info!(containers = met.len(), awake, "the engine answers");
        }
    }
}
