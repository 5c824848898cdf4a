//! All sites at once: one task owns them, hears what is declared, what the engine does and who asks,
//! and lets each site do one thing at a time until it is as it should be.

mod ask;
mod declare;
mod measure;
mod outside;
mod room;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use common::{
    Published,
    containers::Containers,
    observed::{Change, Observed, State},
};
use tokio::{
    sync::{Notify, broadcast, mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

pub(crate) use self::ask::Command;
pub use self::measure::Capacity;
use self::{
    ask::{FIRST_WORD, Reply},
    measure::Sample,
};
use crate::{
    engine::Status,
    files,
    lease::Leases,
    memory,
    metrics::Wakes,
    plan::{Level, Step, plan},
    tenant::{Refusal, STEADY, Tenant},
    work::{Job, Making, Outcome, Work, WorkError},
};

/// Between looks at idleness, memory and crashes that may be tried again.
const TICK: Duration = Duration::from_millis(500);
/// Between looks at everything the engine has.
const RESYNC: Duration = Duration::from_secs(30);
/// Between readings of memory and disks.
const SAMPLE: Duration = Duration::from_secs(5);
/// A frozen site is ended only after this: the edge has heard by then, and has asked for it if it
/// had something under way there.
const SETTLE: Duration = Duration::from_millis(200);
/// A zone file that is gone for a moment is being saved; one that is gone for longer is gone.
const SECOND_THOUGHTS: Duration = Duration::from_secs(5);
/// News the slowest reader may be behind.
pub(crate) const NEWS: usize = 4_096;
/// Before anything that failed is tried again.
const REST: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Everything the one task owns.
pub(crate) struct Fleet {
    config: Containers,
    published: Arc<Published>,
    leases: Leases,
    work: Arc<Work>,
    tenants: HashMap<Arc<str>, Tenant>,
    /// Sites that wait for memory, with the time since when.
    queue: VecDeque<(Arc<str>, Instant)>,
    /// Jobs to start at the end of this turn.
    due: Vec<Job>,
    jobs: JoinSet<(Arc<str>, Outcome)>,
    news: broadcast::Sender<Change>,
    observed: watch::Sender<Arc<Observed>>,
    /// True once everything the engine has is known: before that, nothing is said of any site.
    ready: watch::Sender<bool>,
    begun: Instant,
    known: Observed,
    /// What this turn has changed in `known`, to be published at its end.
    changes: Vec<Change>,
    budget: u64,
    /// What an awake site takes on average, shim included.
    average: u64,
    samples: JoinSet<Vec<Sample>>,
    /// What containers that ended by themselves printed last.
    said: JoinSet<(Arc<str>, String)>,
    sleepers: Vec<(Arc<str>, Reply<()>)>,
    holders: Vec<(Arc<str>, Reply<Option<Making>>)>,
    /// The engine is there and everything it has is known.
    synced: bool,
    wakes: Arc<Wakes>,
    last_sample: Instant,
    last_resync: Instant,
    resync: mpsc::Sender<()>,
    cleaned: Option<Instant>,
}

impl Fleet {
    #[expect(clippy::too_many_arguments, reason = "put together in one place")]
    pub(crate) fn new(
        config: Containers,
        published: Arc<Published>,
        leases: Leases,
        work: Arc<Work>,
        news: broadcast::Sender<Change>,
        observed: watch::Sender<Arc<Observed>>,
        ready: watch::Sender<bool>,
        wakes: Arc<Wakes>,
        resync: mpsc::Sender<()>,
    ) -> Self {
        let budget = match config.memory_bytes {
            0 => memory::for_sites(memory::of_the_host()),
            bytes => bytes,
        };
        let now = Instant::now();
        Self {
            config,
            published,
            leases,
            work,
            tenants: HashMap::new(),
            queue: VecDeque::new(),
            due: Vec::new(),
            jobs: JoinSet::new(),
            news,
            observed,
            ready,
            begun: now,
            known: Observed::new(),
            changes: Vec::new(),
            budget,
            average: measure::FIRST_GUESS,
            samples: JoinSet::new(),
            said: JoinSet::new(),
            sleepers: Vec::new(),
            holders: Vec::new(),
            synced: false,
            wakes,
            last_sample: now,
            last_resync: now,
            resync,
            cleaned: None,
        }
    }

    /// Runs until the last asker is gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut declared = self.published.subscribe();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(done) = self.jobs.join_next() => {
                    if let Ok((site, outcome)) = done {
                        self.done(&site, outcome);
                    }
                }
                Some(samples) = self.samples.join_next() => {
                    self.sampled(samples.unwrap_or_default());
                }
                Some(Ok((site, said))) = self.said.join_next() => self.said(&site, &said),
                Ok(()) = declared.changed() => self.declared(),
                _ = tick.tick() => self.tick(),
            }
            self.publish();
            self.begin();
        }
        self.save();
    }

    /// What a site should be doing now, all things considered.
    fn aim(tenant: &Tenant, now: Instant) -> Level {
        let level = tenant.level;
        let level = tenant.held.map_or(level, |held| level.min(held));
        // Nothing is started without memory set aside, nor too soon after a failure.
        if level == Level::Awake
            && !matches!(tenant.status(), Some(Status::Running | Status::Paused))
            && (!tenant.admitted || tenant.waits(now))
        {
            return Level::Asleep;
        }
        let settled = tenant
            .frozen
            .is_some_and(|frozen| now.duration_since(frozen) >= SETTLE);
        if level < Level::Dozing && tenant.status() == Some(Status::Paused) && !settled {
            return Level::Dozing;
        }
        level
    }

    /// Starts what a site needs next, unless it is busy.
    fn kick(&mut self, site: &Arc<str>) {
        let now = Instant::now();
        let Some(tenant) = self.tenants.get_mut(site) else {
            return;
        };
        if tenant.busy.is_some() {
            self.tell(site);
            return;
        }
        let gone = tenant.undeclared.is_some();
        let waited = |time: Duration| tenant.gone_for(time, now);
        let aim = Self::aim(tenant, now);
        let mut steps: Vec<Step> = if gone {
            if waited(SECOND_THOUGHTS) {
                plan(None, tenant.seen.as_ref()).to_vec()
            } else {
                Vec::new()
            }
        } else {
            // Declared, and its container can't be made just now: what is there stays.
            tenant.making.as_ref().map_or_else(Vec::new, |making| {
                plan(Some((&making.digest, aim)), tenant.seen.as_ref()).to_vec()
            })
        };
        let runs = tenant.status() == Some(Status::Running);
        if steps.is_empty() && !gone && aim == Level::Awake && tenant.making.is_some() && runs {
            if tenant.restart {
                // Made anew: its image may be a newer one of the same name.
                steps = vec![Step::Stop, Step::Remove, Step::Create, Step::Start];
            } else if !tenant.ready {
                // It runs and has not answered: once more from the start.
                steps = vec![Step::Stop, Step::Start];
            }
        }
        if tenant.restart && steps == [Step::Start] {
            steps = vec![Step::Remove, Step::Create, Step::Start];
        }
        if steps == [Step::Pause] {
            steps = tenant.freeze_or(aim, now).to_vec();
        }
        let kept = tenant.undeclared.and_then(|(_, kept)| kept);
        let discard = tenant.seen.is_none() && kept.is_some_and(waited);
        if steps.is_empty() && !discard {
            self.settle(site, now);
            return;
        }
        // What failed is not tried again at once, whatever it was; nothing is tried without an engine.
        let early = steps.contains(&Step::Start) && tenant.waits(now);
        if early || tenant.rest.is_some_and(|rest| now < rest) || !self.synced {
            self.tell(site);
            return;
        }
        let died = Arc::new(Notify::new());
        tenant.busy = Some(Arc::clone(&died));
        tenant.discarding = discard;
        if steps.contains(&Step::Stop) || steps.contains(&Step::Start) {
            tenant.ready = false;
            tenant.supple();
        }
        if steps.contains(&Step::Start) {
            tenant.generation = tenant.generation.wrapping_add(1);
            tenant.started = Some(now);
            tenant.bytes = None;
            tenant.cgroup = None;
            tenant.restart = false;
        }
        if steps.contains(&Step::Unpause) || steps.contains(&Step::Start) {
            tenant.frozen = None;
            tenant.waking = Some(now);
        }
        self.due.push(Job {
            site: Arc::clone(site),
            making: tenant.making.clone(),
            steps,
            seen: tenant.seen.clone(),
            died,
            discard,
            had_database: tenant.had_database,
        });
        self.tell(site);
    }

    /// Starts what a turn has found to do. By then it is published: nothing new is sent to a site about
    /// to be frozen.
    fn begin(&mut self) {
        for job in self.due.drain(..) {
            let work = Arc::clone(&self.work);
            self.jobs.spawn(async move {
                let (site, seen) = (Arc::clone(&job.site), job.seen.clone());
                // In a task of its own, so that not even a panic leaves a site busy for ever.
                let done = tokio::spawn(async move { work.run(job).await }).await;
                done.unwrap_or_else(|error| {
                    let outcome = Outcome {
                        seen,
                        error: Some(WorkError::Files(std::io::Error::other(error))),
                        failed: Some(Step::Start),
                        said: String::new(),
                    };
                    (site, outcome)
                })
            });
        }
    }

    /// A job is over.
    fn done(&mut self, site: &Arc<str>, outcome: Outcome) {
        let now = Instant::now();
        let Some(tenant) = self.tenants.get_mut(site) else {
            return;
        };
        let discarded = tenant.discarding && outcome.error.is_none();
        let waking = tenant.waking.take();
        tenant.busy = None;
        tenant.discarding = false;
        tenant.known = now;
        tenant.settled = SystemTime::now();
        if std::mem::take(&mut tenant.doubt) {
            // A full slot holds the same wish.
            self.resync.try_send(()).unwrap_or_default();
        }
        let before = tenant.status();
        tenant.seen = outcome.seen;
        if tenant.status() == Some(Status::Paused) && before != Some(Status::Paused) {
            tenant.frozen = Some(now);
            tenant.supple();
        }
        match outcome.error {
            None => {
                tenant.recovered();
                if tenant.status() == Some(Status::Running) {
                    if let Some(since) = waking {
                        let from = if before == Some(Status::Paused) {
                            State::Dozing
                        } else {
                            State::Asleep
                        };
                        self.wakes.woken(from, now.duration_since(since));
                    }
                    tenant.ready = true;
                } else {
                    tenant.ready = false;
                    if tenant.status() != Some(Status::Paused) {
                        // Somebody may have asked for it meanwhile: then its room stays its own.
                        tenant.admitted &= tenant.level == Level::Awake;
                        tenant.bytes = None;
                    }
                }
                if discarded {
                    self.forget(site);
                    return;
                }
            }
            Some(error) => {
                let text = with_last_lines(&error.to_string(), &outcome.said);
                tenant.rest = Some(now + REST);
                if outcome.failed == Some(Step::Pause) && !error.is_engine_gone() {
                    tenant.stiffened(&text, now);
                } else {
                    tracing::warn!(%site, error = %text, "a site can't be made as it should be");
                    let starting = matches!(
                        outcome.failed,
                        Some(Step::Create | Step::Start | Step::Unpause)
                    );
                    if error.is_engine_gone() || !starting {
                        // Not the site's fault, and no reason to think worse of what runs.
                        tenant.trouble = Some(text);
                    } else {
                        tenant.ready = false;
                        if error.is_a_crash() {
                            tenant.failed(text, now);
                        } else {
                            tenant.hindered(text, now);
                        }
                        self.wakes.failed();
                        self.fail_waiters(site);
                    }
                }
            }
        }
        self.serve_queue(now);
        self.kick(site);
    }

    /// Tells those who wait why it fails.
    fn fail_waiters(&mut self, site: &Arc<str>) {
        if let Some(tenant) = self.tenants.get_mut(site) {
            let why = tenant.trouble.clone().unwrap_or_default();
            tenant.answer(&Err(Refusal::Failing(why)));
        }
        self.tell(site);
    }

    /// Nothing to do for a site: whoever waited for that is told.
    fn settle(&mut self, site: &Arc<str>, now: Instant) {
        if let Some(tenant) = self.tenants.get_mut(site) {
            let mut live = tenant.live(now);
            if live.state == State::Awake {
                tenant.recovered();
                live = tenant.live(now);
            }
            if live.state == State::Awake && tenant.held.is_none() {
                tenant.answer(&Ok(live));
            }
            let resting = tenant.status() != Some(Status::Running);
            let ended = !matches!(tenant.status(), Some(Status::Running | Status::Paused));
            let held = tenant
                .held
                .is_some_and(|level| resting && (ended || level == Level::Dozing));
            let making = tenant.making.clone();
            let mine = |other: &Arc<str>| other == site;
            for (_, reply) in self
                .sleepers
                .extract_if(.., |(other, _)| ended && mine(other))
            {
                drop(reply.send(Ok(())));
            }
            for (_, reply) in self
                .holders
                .extract_if(.., |(other, _)| held && mine(other))
            {
                drop(reply.send(Ok(making.clone())));
            }
        }
        self.tell(site);
    }

    /// Notes what is known of a site, when that is news.
    fn tell(&mut self, site: &Arc<str>) {
        let now = Instant::now();
        let live = self.tenants.get(site).map(|tenant| tenant.live(now));
        let change = match live {
            Some(live) if self.known.get(site) == Some(&live) => return,
            Some(live) => {
                self.known.insert(Arc::clone(site), live.clone());
                Change::Site(Arc::clone(site), live)
            }
            None if self.known.remove(site).is_some() => Change::Gone(Arc::clone(site)),
            None => return,
        };
        self.changes.push(change);
    }

    /// Once for all that a turn has changed, since it is a copy of everything; the whole before its
    /// news, so that whoever begins to listen in between hears of each.
    fn publish(&mut self) {
        if !self.changes.is_empty() {
            self.observed.send_replace(Arc::new(self.known.clone()));
        }
        for change in self.changes.drain(..) {
            // Nobody listens when no edge is connected.
            drop(self.news.send(change));
        }
        if self.synced && !*self.ready.borrow() {
            self.ready.send_replace(true);
        }
    }

    fn forget(&mut self, site: &Arc<str>) {
        self.tenants.remove(site);
        self.leases.release(site, unix_now());
        self.save();
        self.tell(site);
        tracing::info!(%site, "removed: its files are in the bin for 30 days");
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let mut restless = Vec::new();
        let mut broken = Vec::new();
        // While sites wait for the processors to start on, freezing and ending others by the clock would
        // only make them wait longer. Memory still makes room.
        let crowded = self.work.crowded();
        let silent = !self.synced && self.begun.elapsed() > FIRST_WORD;
        for (site, tenant) in &mut self.tenants {
            tenant.forget_gone();
            if silent && tenant.seen.is_none() {
                tenant.answer(&Err(Refusal::no_engine()));
            }
            if tenant.making.is_none() && tenant.undeclared.is_none() {
                broken.push(Arc::clone(site));
            }
            if tenant.busy.is_none()
                && tenant.level < Level::Awake
                && !matches!(tenant.status(), Some(Status::Running | Status::Paused))
            {
                tenant.admitted = false;
            }
            let idle = now.duration_since(tenant.last_active);
            if tenant.needed(now) {
                tenant.last_active = now;
            } else if tenant.making.is_some() {
                let steady = tenant
                    .started
                    .is_some_and(|at| now.duration_since(at) >= STEADY);
                if tenant.ready && steady && tenant.crashes > 0 {
                    tenant.forgive();
                }
                // Down as time goes by; up only when somebody asks.
                if !crowded {
                    tenant.level = tenant.level.min(tenant.times.level(idle));
                }
            }
            let aim = Self::aim(tenant, now);
            let unsettled = tenant.making.as_ref().is_some_and(|making| {
                !plan(Some((&making.digest, aim)), tenant.seen.as_ref()).is_empty()
            });
            let pending = unsettled
                || (tenant.status() == Some(Status::Running) && !tenant.ready)
                || tenant.held.is_some()
                || tenant.undeclared.is_some()
                || !tenant.waiters.is_empty()
                || (tenant.level == Level::Awake && !tenant.admitted);
            if tenant.busy.is_none() && pending {
                restless.push(Arc::clone(site));
            }
        }
        for site in broken {
            // A secret that was not there yet, or an address that has become free.
            if let Some(mut tenant) = self.tenants.remove(&site) {
                self.declare(&site, &mut tenant);
                self.tenants.insert(site, tenant);
            }
        }
        for site in restless {
            let waiting = self.tenants.get(&site).is_some_and(|tenant| {
                tenant.level == Level::Awake && !tenant.admitted && !tenant.waits(now)
            });
            if waiting {
                self.admit(&site, now);
            }
            self.kick(&site);
        }
        self.serve_queue(now);
        self.keep_within_budget(now);
        if now.duration_since(self.last_sample) >= SAMPLE && self.samples.is_empty() {
            self.last_sample = now;
            self.sample();
        }
        if self.synced && now.duration_since(self.last_resync) >= RESYNC {
            self.last_resync = now;
            // A full slot holds the same wish.
            self.resync.try_send(()).unwrap_or_default();
            self.networks();
        }
        if self
            .cleaned
            .is_none_or(|cleaned| now.duration_since(cleaned) >= DAY)
        {
            self.cleaned = Some(now);
            let (folders, wall) = (self.work.folders.clone(), SystemTime::now());
            tokio::task::spawn_blocking(move || folders.empty_bin(wall));
            self.leases
                .forget(unix_now().saturating_sub(files::KEPT.as_secs()));
        }
    }

    /// Networks as they should be.
    fn networks(&mut self) {
        let unix = unix_now();
        let idle: Vec<(Arc<str>, u64)> = self
            .tenants
            .iter()
            .map(|(site, tenant)| {
                (
                    Arc::clone(site),
                    unix.saturating_sub(tenant.last_active.elapsed().as_secs()),
                )
            })
            .collect();
        for (site, last) in idle {
            // To the minute: the file is not written for less.
            self.leases.note_activity(&site, last / 60 * 60);
        }
        let mut used = self.leases.used_networks();
        // A site that can't be made as it is declared goes on where it was.
        let makings = self.tenants.values().filter_map(|it| it.making.as_ref());
        used.extend(makings.map(|making| making.network.name.clone()));
        let work = Arc::clone(&self.work);
        self.leases.forget_networks(unix, |name| {
            used.contains(name) || work.networks.may_have(name)
        });
        self.save();
        let networks: Vec<_> = self.leases.networks().cloned().collect();
        tokio::spawn(async move {
            if let Err(error) = work.networks.resync(&networks, &used, &*work.engine).await {
                tracing::error!(%error, "the networks or their walls are not as they should be");
            }
        });
    }

    /// Whether the leases are kept.
    fn save(&mut self) -> bool {
        let saved = self.leases.save();
        if let Err(error) = &saved {
            tracing::error!(%error, "can't write leases.json in the state folder: no new site is made");
        }
        saved.is_ok()
    }
}

fn with_last_lines(why: &str, said: &str) -> String {
    if said.is_empty() {
        return why.to_owned();
    }
    let lines: String = said.lines().map(|line| format!("\n  {line}")).collect();
    format!("{why}; it printed last:{lines}")
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
