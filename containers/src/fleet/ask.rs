//! What control is asked, and what it does about it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Capacity, Fleet, declare::Declared};
use crate::{
    engine::{Event, Found, Status},
    plan::Level,
    tenant::{Refusal, Tenant, Waiter},
    work::Making,
};

/// How long requests said to be under way keep a site awake without being said again.
const BELIEVED: Duration = Duration::from_secs(5);
/// How long requests wait for an engine that has not answered yet.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(10);

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What control is asked.
pub(crate) enum Command {
    Wake(Arc<str>, Waiter),
    /// Puts a site to sleep now.
    Sleep(Arc<str>, Reply<()>),
    Restart(Arc<str>, Waiter),
    /// Requests under way by site, and sites used since the last report.
    Activity(Vec<(Arc<str>, u32)>),
    /// Keeps a site still until released; answered when it is.
    Hold(Arc<str>, Level, Reply<Option<Making>>),
    Release(Arc<str>),
    /// Makes a site's folder without waking it.
    Prepare(Arc<str>, Reply<()>),
    /// The container of a site, if there is one.
    Container(Arc<str>, oneshot::Sender<Option<String>>),
    Capacity(oneshot::Sender<Capacity>),
    Engine(Event),
    /// Everything the engine had when it was asked.
    Resync(Instant, Vec<Found>),
    /// The engine is gone.
    Lost(String),
}

impl Fleet {
    pub(super) fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Wake(site, waiter) => self.wake(&site, waiter, now),
            Command::Restart(site, waiter) => {
                if let Some(tenant) = self.declared_tenant(&site) {
                    tenant.forgive();
                    tenant.restart = tenant.seen.is_some();
                    tenant.ready &= !tenant.restart;
                }
                self.wake(&site, waiter, now);
                self.kick(&site);
            }
            Command::Sleep(site, reply) => match self.declared_tenant(&site) {
                None => drop(reply.send(Err(Refusal::Unknown))),
                Some(tenant) => {
                    tenant.level = tenant.level.min(Level::Asleep);
                    self.sleepers.push((Arc::clone(&site), reply));
                    self.kick(&site);
                }
            },
            Command::Activity(sites) => {
                for (site, in_flight) in sites {
                    if let Some(tenant) = self.tenants.get_mut(&site) {
                        tenant.last_active = now;
                        tenant.in_flight = in_flight;
                        tenant.believed = Some(now + BELIEVED);
                        // They wait in a frozen site: it was to sleep before they were heard of.
                        let waiting = in_flight > 0
                            && tenant.level < Level::Awake
                            && tenant.making.is_some()
                            && matches!(tenant.status(), Some(Status::Running | Status::Paused));
                        if waiting {
                            self.rouse(&site, now);
                        }
                    }
                }
            }
            Command::Hold(site, level, reply) => match self.declared_tenant(&site) {
                None => drop(reply.send(Err(Refusal::Unknown))),
                Some(tenant) if tenant.held.is_some() => {
                    let why = "another backup or restore of this site is under way".to_owned();
                    drop(reply.send(Err(Refusal::Failing(why))));
                }
                Some(tenant) => {
                    tenant.held = Some(level);
                    self.holders.push((Arc::clone(&site), reply));
                    self.kick(&site);
                }
            },
            Command::Release(site) => {
                if let Some(tenant) = self.tenants.get_mut(&site) {
                    tenant.held = None;
                    tenant.last_active = now;
                    self.kick(&site);
                }
            }
            Command::Prepare(site, reply) => match self.declared_tenant(&site) {
                None => drop(reply.send(Err(Refusal::Unknown))),
                Some(tenant) if tenant.held.is_some() => {
                    let why = "a backup or restore of this site is under way".to_owned();
                    drop(reply.send(Err(Refusal::Failing(why))));
                }
                Some(tenant) => {
                    let making = tenant.making.clone();
                    let at_rest =
                        !matches!(tenant.status(), Some(Status::Running | Status::Paused));
                    let work = Arc::clone(&self.work);
                    tokio::spawn(async move {
                        let ready = match &making {
                            Some(making) => work.ready_files(making, at_rest).await,
                            None => Ok(()),
                        };
                        drop(
                            reply.send(ready.map_err(|error| Refusal::Failing(error.to_string()))),
                        );
                    });
                }
            },
            Command::Container(site, reply) => {
                let seen = self
                    .tenants
                    .get(&site)
                    .and_then(|tenant| tenant.seen.as_ref());
                drop(reply.send(seen.map(|seen| seen.id.clone())));
            }
            Command::Capacity(reply) => drop(reply.send(self.capacity())),
            Command::Engine(event) => self.event(&event),
            Command::Resync(asked, found) => self.found(asked, found),
            Command::Lost(why) => {
                let was = std::mem::replace(&mut self.synced, false);
                if was {
                    tracing::error!(%why, "the engine is gone: awake sites are served as long as they run; trying again");
                } else {
                    tracing::warn!(%why, "no engine yet: sites in containers wait for one");
                }
            }
        }
    }

    /// The tenant of a declared container site, made now if need be.
    pub(super) fn declared_tenant(&mut self, site: &Arc<str>) -> Option<&mut Tenant> {
        if !self.tenants.contains_key(site) {
            let mut tenant = Tenant::new(Instant::now());
            if self.declare(site, &mut tenant) != Declared::Container {
                return None;
            }
            // Kept before anything is made with it: a uid and an address are never given twice.
            if !self.save() {
                return None;
            }
            self.tenants.insert(Arc::clone(site), tenant);
        }
        self.tenants
            .get_mut(site)
            .filter(|tenant| tenant.making.is_some())
    }

    pub(super) fn wake(&mut self, site: &Arc<str>, waiter: Waiter, now: Instant) {
        let (synced, begun) = (self.synced, self.begun);
        let Some(tenant) = self.declared_tenant(site) else {
            drop(waiter.send(Err(
                match self.tenants.get(site).and_then(|t| t.misdeclared.clone()) {
                    Some(trouble) => Refusal::Failing(trouble),
                    None => Refusal::Unknown,
                },
            )));
            return;
        };
        tenant.last_active = now;
        // At the start the engine is given a moment to say what it has.
        if !synced && tenant.seen.is_none() && begun.elapsed() > FIRST_WORD {
            drop(waiter.send(Err(Refusal::no_engine())));
            return;
        }
        // A short pause after a failure is waited for; a long one is told.
        if tenant.waits_long(now) && !tenant.ready {
            let why = tenant.trouble.clone().unwrap_or_default();
            drop(waiter.send(Err(Refusal::Failing(why))));
            return;
        }
        tenant.wait(waiter);
        self.rouse(site, now);
    }

    /// Somebody is there: it is to be awake.
    fn rouse(&mut self, site: &Arc<str>, now: Instant) {
        let Some(tenant) = self.tenants.get_mut(site) else {
            return;
        };
        if tenant.level < Level::Awake {
            tenant.supple();
        }
        tenant.level = Level::Awake;
        let admitted = tenant.admitted;
        // Whoever wants it asleep would wait for that in vain.
        for (_, reply) in self.sleepers.extract_if(.., |(other, _)| other == site) {
            drop(reply.send(Err(Refusal::InUse)));
        }
        if !admitted {
            self.admit(site, now);
        }
        self.kick(site);
    }
}
