//! All sites at once: one task owns them, hears what is declared, what the engine does and who asks,
//! and lets each site do one thing at a time until it is as it should be.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use common::{
    Backend, Published,
    containers::Containers,
    observed::{Change, Observed, State},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, broadcast, mpsc, oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    budget::{self, Room, Taking},
    engine::{Event, EventKind, Found, Status},
    files,
    lease::Leases,
    memory,
    metrics::Wakes,
    plan::{Level, Seen, Step, plan},
    spec::Spec,
    tenant::{Refusal, STEADY, Tenant, Times, Waiter},
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
/// After the files, what is in them.
const DISCARD_AFTER: Duration = Duration::from_secs(30);
/// How long a request may wait for others to make room.
const ROOM_WITHIN: Duration = Duration::from_secs(15);
/// A site someone used so lately is brought back at once when it dies.
const MISSED: Duration = Duration::from_secs(5);
/// Memory of a site before it has been measured; also the least it is taken for.
const FIRST_GUESS: u64 = 10 << 20;
const LEAST_GUESS: u64 = 4 << 20;
/// A disk with less than this free is full.
const FULL_BELOW: u64 = 256 << 10;
/// News the slowest reader may be behind.
pub(crate) const NEWS: usize = 4_096;
/// How long requests said to be under way keep a site awake without being said again.
const BELIEVED: Duration = Duration::from_secs(5);
/// A whole zone that is gone may be a folder being moved: its sites' files wait this long.
const ZONE_GONE: Duration = Duration::from_secs(86_400);
/// How long requests wait for an engine that has not answered yet.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// Before anything that failed is tried again.
const REST: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

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

/// Everything the one task owns.
pub(crate) struct Fleet {
    config: Containers,
    published: Arc<Published>,
    leases: Leases,
    work: Arc<Work>,
    tenants: HashMap<Arc<str>, Tenant>,
    /// Sites that wait for memory, with the time since when.
    queue: VecDeque<(Arc<str>, Instant)>,
    jobs: JoinSet<(Arc<str>, Outcome)>,
    news: broadcast::Sender<Change>,
    observed: watch::Sender<Arc<Observed>>,
    /// True once everything the engine has is known: before that, nothing is said of any site.
    ready: watch::Sender<bool>,
    begun: Instant,
    known: Observed,
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

/// What the files say of a site there is something of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declared {
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
    fn note(self, tenant: &mut Tenant, now: Instant) {
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

/// What one look at a site's cgroup and disk said.
struct Sample {
    site: Arc<str>,
    cgroup: Option<std::path::PathBuf>,
    bytes: Option<u64>,
    full: bool,
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
            jobs: JoinSet::new(),
            news,
            observed,
            ready,
            begun: now,
            known: Observed::new(),
            budget,
            average: FIRST_GUESS + memory::OVERHEAD,
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
        }
        self.save();
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Wake(site, waiter) => self.wake(&site, waiter, now),
            Command::Restart(site, waiter) => {
                if let Some(tenant) = self.declared_tenant(&site) {
                    tenant.forgive();
                    tenant.restart = tenant.status().is_some_and(|s| s != Status::Stopped);
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
    fn declared_tenant(&mut self, site: &Arc<str>) -> Option<&mut Tenant> {
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

    fn wake(&mut self, site: &Arc<str>, waiter: Waiter, now: Instant) {
        let (synced, begun) = (self.synced, self.begun);
        let Some(tenant) = self.declared_tenant(site) else {
            drop(waiter.send(Err(
                match self.tenants.get(site).and_then(|t| t.trouble.clone()) {
                    Some(trouble) => Refusal::Failing(trouble),
                    None => Refusal::Unknown,
                },
            )));
            return;
        };
        tenant.last_active = now;
        // At the start the engine is given a moment to say what it has.
        if !synced && tenant.seen.is_none() && begun.elapsed() > FIRST_WORD {
            let why = "the container engine does not answer".to_owned();
            drop(waiter.send(Err(Refusal::Failing(why))));
            return;
        }
        // A short pause after a failure is waited for; a long one is told.
        if tenant.crashed(now) && !tenant.ready {
            let why = tenant.trouble.clone().unwrap_or_default();
            drop(waiter.send(Err(Refusal::Failing(why))));
            return;
        }
        tenant.wait(waiter);
        tenant.level = Level::Awake;
        if !tenant.admitted {
            self.admit(site, now);
        }
        self.kick(site);
    }

    /// Sets memory aside for a site, or queues it until there is some.
    fn admit(&mut self, site: &Arc<str>, now: Instant) {
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
    fn serve_queue(&mut self, now: Instant) {
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
    fn keep_within_budget(&mut self, now: Instant) {
        let leaving: Vec<Arc<str>> = match budget::room(self.budget, 0, &self.taking(now)) {
            Room::After(leaving) => leaving.into_iter().cloned().collect(),
            Room::Enough | Room::None => Vec::new(),
        };
        self.evict(&leaving);
    }

    fn evict(&mut self, leaving: &[Arc<str>]) {
        for site in leaving {
            if let Some(tenant) = self.tenants.get_mut(site) {
                tenant.level = Level::Asleep;
            }
            self.wakes.evicted();
            self.kick(site);
        }
    }

    fn taking(&self, now: Instant) -> Vec<Taking<&Arc<str>>> {
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
        let waited = |time: Duration| {
            let since = tenant.undeclared.map(|(since, _)| since);
            since.is_some_and(|since| now.duration_since(since) >= time)
        };
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
        if steps.contains(&Step::Start) {
            tenant.ready = false;
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
        let job = Job {
            site: Arc::clone(site),
            making: tenant.making.clone(),
            steps,
            seen: tenant.seen.clone(),
            died,
            discard,
            had_database: tenant.had_database,
        };
        let work = Arc::clone(&self.work);
        // Told before it is done: nothing new is sent to a site about to be frozen.
        self.tell(site);
        self.jobs.spawn(async move {
            let (site, seen) = (Arc::clone(&job.site), job.seen.clone());
            // In a task of its own, so that not even a panic leaves a site busy for ever.
            let done = tokio::spawn(async move { work.run(job).await }).await;
            done.unwrap_or_else(|error| {
                let outcome = Outcome {
                    seen,
                    error: Some(WorkError::Files(std::io::Error::other(error))),
                    starting: true,
                    said: String::new(),
                };
                (site, outcome)
            })
        });
    }

    /// A job is over.
    fn done(&mut self, site: &Arc<str>, outcome: Outcome) {
        let now = Instant::now();
        let Some(tenant) = self.tenants.get_mut(site) else {
            return;
        };
        let discarded = tenant.discarding && outcome.error.is_none();
        tenant.busy = None;
        tenant.discarding = false;
        tenant.known = now;
        if std::mem::take(&mut tenant.doubt) {
            // A full slot holds the same wish.
            self.resync.try_send(()).unwrap_or_default();
        }
        let before = tenant.status();
        tenant.seen = outcome.seen;
        if tenant.status() == Some(Status::Paused) && before != Some(Status::Paused) {
            tenant.frozen = Some(now);
        }
        match outcome.error {
            None => {
                if tenant.status() == Some(Status::Running) {
                    if let Some(since) = tenant.waking.take() {
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
                tracing::warn!(%site, error = %text, "a site can't be made as it should be");
                tenant.rest = Some(now + REST);
                if error.is_engine_gone() || !outcome.starting {
                    // Not the site's fault, and no reason to think worse of what runs.
                    tenant.trouble = Some(text);
                } else {
                    tenant.ready = false;
                    tenant.failed(text, now);
                    self.wakes.failed();
                    self.fail_waiters(site);
                }
            }
        }
        self.serve_queue(now);
        self.kick(site);
    }

    /// Adds what the site last said to its trouble, and tells those who wait.
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
            let live = tenant.live(now);
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

    /// Publishes what is known of a site, when that is news.
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
        self.observed.send_replace(Arc::new(self.known.clone()));
        // Nobody listens when no edge is connected.
        drop(self.news.send(change));
    }

    fn forget(&mut self, site: &Arc<str>) {
        self.tenants.remove(site);
        self.leases.release(site, unix_now());
        self.save();
        self.tell(site);
        tracing::info!(%site, "removed: its files are in the bin for 30 days");
    }

    /// Takes the declarations of now for every site there is something of.
    fn declared(&mut self) {
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
    fn declare(&mut self, site: &Arc<str>, tenant: &mut Tenant) -> Declared {
        let before = tenant.making.take();
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
                tenant.trouble = Some(error.to_string());
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
                    tenant.trouble = Some(format!(
                        "the secret {variable} in {}: {error}",
                        file.display()
                    ));
                    tenant.making = before;
                    return Declared::Container;
                }
            }
        }
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
            tenant.trouble = Some(
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

    fn event(&mut self, event: &Event) {
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
        tenant.known = now;
        match status {
            Some(status) if status == before => return,
            Some(status) => seen.status = status,
            None => tenant.seen = None,
        }
        self.changed_outside(&event.site, Some(before), now);
    }

    /// A container is not as we left it.
    fn changed_outside(&mut self, site: &Arc<str>, before: Option<Status>, now: Instant) {
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

    fn said(&mut self, site: &Arc<str>, said: &str) {
        if let Some(tenant) = self.tenants.get_mut(site)
            && let Some(trouble) = &mut tenant.trouble
        {
            *trouble = with_last_lines(trouble, said);
        }
        self.tell(site);
    }

    /// Everything the engine has: adopts what runs, removes what nobody declares.
    fn found(&mut self, asked: Instant, found: Vec<Found>) {
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
            self.ready.send_replace(true);
            let awake = self.tenants.values().filter(|tenant| tenant.ready).count();
            tracing::info!(containers = met.len(), awake, "the engine answers");
        }
    }

    /// Sites that hold a lease and have no container: their disks are mounted again after a restart of
    /// the machine, and the files of those declared no more go to the bin.
    fn adopt_leases(&mut self, now: Instant) {
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

    fn tick(&mut self) {
        let now = Instant::now();
        let mut restless = Vec::new();
        let mut broken = Vec::new();
        for (site, tenant) in &mut self.tenants {
            tenant.forget_gone();
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
                tenant.level = tenant.level.min(tenant.times.level(idle));
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
        self.leases.forget_networks();
        self.save();
        let networks: Vec<_> = self.leases.networks().cloned().collect();
        let work = Arc::clone(&self.work);
        tokio::spawn(async move {
            if let Err(error) = work.networks.resync(&networks, &*work.engine).await {
                tracing::error!(%error, "the networks or their walls are not as they should be");
            }
        });
    }

    /// Reads memory and disks of what runs, where nobody waits for it.
    fn sample(&mut self) {
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

    fn sampled(&mut self, samples: Vec<Sample>) {
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
            let first = FIRST_GUESS + memory::OVERHEAD;
            self.average = (sum + first * 4) / (count + 4);
        }
    }

    fn capacity(&self) -> Capacity {
        let now = Instant::now();
        let registry = self.published.load();
        let declared = registry
            .zones
            .iter()
            .flat_map(|(zone, _)| zone.sites.iter())
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

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
