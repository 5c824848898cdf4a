//! One site as control sees it: what it should be doing, what it does, and who waits for it.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use common::{
    group::Group,
    observed::{Live, State},
};
use tokio::sync::{Notify, oneshot};

use crate::{
    engine::Status,
    plan::{Level, Seen, Step},
    work::Making,
};

/// A site that ends sooner than this after its start has crashed.
pub(crate) const STEADY: Duration = Duration::from_secs(30);
/// So many crashes in a row and it is left alone.
pub(crate) const MOST_CRASHES: u32 = 5;
/// After which one visit may try it again.
pub(crate) const SECOND_CHANCE: Duration = Duration::from_secs(15 * 60);
/// So many hindrances in a row and visitors are told, rather than kept waiting for the next try.
const MOST_HINDRANCES: u32 = 3;
/// A site that could not be frozen so often in a row is ended without.
const MOST_FREEZES: u32 = 3;
/// Visitors at once waiting for one site.
const MOST_WAITERS: usize = 1_000;

/// Who waits for a site to wake.
pub(crate) type Waiter = oneshot::Sender<Result<Live, Refusal>>;

/// Why a site was not woken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such site is a container.
    #[error("no container site has this name")]
    Unknown,
    /// Too many wait for it already.
    #[error("too many requests wait for this site")]
    Crowded,
    /// No memory is left, and every awake site is in use.
    #[error("every site that could make room is in use")]
    Full,
    /// It was to sleep, and somebody looks at it.
    #[error("a visitor is looking at it, so it stays awake: try again in a moment")]
    InUse,
    /// It fails.
    #[error("{0}")]
    Failing(String),
}

impl Refusal {
    /// One word for it, for metrics and programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Crowded => "crowded",
            Self::Full => "full",
            Self::InUse => "used",
            Self::Failing(_) => "failing",
        }
    }

    pub(crate) fn no_engine() -> Self {
        Self::Failing("the container engine does not answer".to_owned())
    }
}

/// A site control has something to do with.
#[derive(Debug)]
pub(crate) struct Tenant {
    /// What it is made from; `None` once it is declared no more.
    pub(crate) making: Option<Making>,
    /// Idle times of its group.
    pub(crate) times: Times,
    pub(crate) had_database: bool,
    pub(crate) seen: Option<Seen>,
    pub(crate) level: Level,
    /// Whether memory has been set aside for it.
    pub(crate) admitted: bool,
    /// Whether a job of its own is under way, and the means to tell that job of its container's end.
    pub(crate) busy: Option<Arc<Notify>>,
    /// Whether it accepted a connection since its start.
    pub(crate) ready: bool,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) last_active: Instant,
    pub(crate) in_flight: u32,
    /// Changes with each start.
    pub(crate) generation: u64,
    pub(crate) started: Option<Instant>,
    /// Since when it is on its way to be awake.
    pub(crate) waking: Option<Instant>,
    pub(crate) crashes: u32,
    /// Not to be tried before.
    pub(crate) not_before: Option<Instant>,
    pub(crate) trouble: Option<String>,
    /// What is wrong with its declaration.
    pub(crate) misdeclared: Option<String>,
    /// Kept at most at this level, for a backup or a restore.
    pub(crate) held: Option<Level>,
    /// Until when nothing is tried again, whatever failed.
    pub(crate) rest: Option<Instant>,
    /// How often in a row it could not be started for no fault of its own.
    pub(crate) hindrances: u32,
    /// Until when what the edge said of requests under way is believed.
    pub(crate) believed: Option<Instant>,
    /// When it was last known for certain what its container does.
    pub(crate) known: Instant,
    /// When the last job of its own was over: the engine's news from before are part of that.
    pub(crate) settled: SystemTime,
    /// Whether the job under way puts its files into the bin.
    pub(crate) discarding: bool,
    /// Something happened to its container while a job was under way.
    pub(crate) doubt: bool,
    /// To be made and started anew.
    pub(crate) restart: bool,
    pub(crate) full: bool,
    /// Memory it takes, measured; none while unknown.
    pub(crate) bytes: Option<u64>,
    pub(crate) cgroup: Option<std::path::PathBuf>,
    /// Since when it is no container site any more, and how long its files are kept in their place.
    pub(crate) undeclared: Option<(Instant, Option<Duration>)>,
    /// How often in a row it could not be frozen: its processes were deep in the kernel.
    pub(crate) stiff: u32,
    /// When that may be tried again.
    pub(crate) freeze_after: Option<Instant>,
    /// When it was frozen: it is stopped only a moment later.
    pub(crate) frozen: Option<Instant>,
}

/// After how long of idleness.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) doze: Option<Duration>,
    pub(crate) sleep: Option<Duration>,
    pub(crate) archive: Option<Duration>,
}

impl Times {
    pub(crate) fn of(group: &Group) -> Self {
        Self {
            doze: group.doze_after,
            sleep: group.sleep_after,
            archive: group.archive_after,
        }
    }

    /// What a site should be doing after so long without a visit.
    pub(crate) fn level(self, idle: Duration) -> Level {
        let past = |time: Option<Duration>| time.is_some_and(|time| idle >= time);
        if past(self.archive) {
            Level::Archived
        } else if past(self.sleep) {
            Level::Asleep
        } else if past(self.doze) {
            Level::Dozing
        } else {
            Level::Awake
        }
    }
}

impl Tenant {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            making: None,
            times: Times::default(),
            had_database: false,
            seen: None,
            level: Level::Archived,
            admitted: false,
            busy: None,
            ready: false,
            waiters: Vec::new(),
            last_active: now,
            in_flight: 0,
            generation: 0,
            started: None,
            waking: None,
            crashes: 0,
            not_before: None,
            trouble: None,
            misdeclared: None,
            held: None,
            rest: None,
            hindrances: 0,
            believed: None,
            known: now,
            settled: SystemTime::UNIX_EPOCH,
            discarding: false,
            doubt: false,
            restart: false,
            full: false,
            bytes: None,
            cgroup: None,
            undeclared: None,
            stiff: 0,
            freeze_after: None,
            frozen: None,
        }
    }

    pub(crate) fn status(&self) -> Option<Status> {
        self.seen.as_ref().map(|seen| seen.status)
    }

    /// Whether it takes memory, or is about to.
    pub(crate) fn takes_memory(&self) -> bool {
        matches!(self.status(), Some(Status::Running | Status::Paused)) || self.admitted
    }

    pub(crate) fn needed(&self, now: Instant) -> bool {
        let visited = self.in_flight > 0 && self.believed.is_some_and(|until| now < until);
        visited || !self.waiters.is_empty() || self.held.is_some()
    }

    /// Whether it is declared no more for so long, and no backup or restore keeps it.
    pub(crate) fn gone_for(&self, time: Duration, now: Instant) -> bool {
        let since = self.undeclared.filter(|_| self.held.is_none());
        since.is_some_and(|(since, _)| now.duration_since(since) >= time)
    }

    pub(crate) fn crashed(&self, now: Instant) -> bool {
        self.crashes >= MOST_CRASHES && self.waits(now)
    }

    /// Whether it is not to be tried yet.
    pub(crate) fn waits(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|time| now < time)
    }

    /// Notes a failed start or an early end.
    pub(crate) fn failed(&mut self, why: String, now: Instant) {
        self.crashes += 1;
        let pause = if self.crashes >= MOST_CRASHES {
            SECOND_CHANCE
        } else {
            // 0.5, 1, 2, 4 seconds.
            Duration::from_millis(250 << self.crashes.min(MOST_CRASHES))
        };
        self.not_before = Some(now + pause);
        self.lie_down(why);
    }

    /// Notes that it could not be started for no fault of its own.
    pub(crate) fn hindered(&mut self, why: String, now: Instant) {
        // 1, 2, 4, then 8 seconds: others want to start too.
        let pause = Duration::from_secs(1 << self.hindrances.min(3));
        self.hindrances = self.hindrances.saturating_add(1);
        self.not_before = Some(now + pause);
        self.lie_down(why);
    }

    fn lie_down(&mut self, why: String) {
        self.trouble = Some(why);
        self.level = Level::Asleep;
        self.admitted = false;
    }

    /// Whether it will not be tried for so long that visitors are better told.
    pub(crate) fn waits_long(&self, now: Instant) -> bool {
        self.crashed(now) || self.hindrances >= MOST_HINDRANCES && self.waits(now)
    }

    /// What to do about a freeze that is due, and may have failed before: that, nothing yet, or an end
    /// without one. Requests would find a frozen site more patient, but it has to end some time.
    pub(crate) fn freeze_or(&self, aim: Level, now: Instant) -> &'static [Step] {
        if self.stiff >= MOST_FREEZES && aim < Level::Dozing {
            &[Step::Stop]
        } else if self.held.is_none() && self.freeze_after.is_some_and(|time| now < time) {
            // A backup waits for it and is worth a try a second.
            &[]
        } else {
            &[Step::Pause]
        }
    }

    /// Notes that it could not be frozen.
    pub(crate) fn stiffened(&mut self, why: &str, now: Instant) {
        self.stiff = self.stiff.saturating_add(1);
        // 2, 4, 8, ... 64 seconds.
        self.freeze_after = Some(now + Duration::from_secs(1 << self.stiff.min(6)));
        let site = self.making.as_ref().map(|making| &*making.spec.site);
        if self.stiff == MOST_FREEZES {
            tracing::warn!(
                site,
                why,
                "a site can't be frozen: when it is to sleep, it ends without"
            );
        } else {
            tracing::debug!(site, why, "a site can't be frozen just now");
        }
    }

    /// It was frozen, or is in use again.
    pub(crate) fn supple(&mut self) {
        (self.stiff, self.freeze_after) = (0, None);
    }

    /// Forgets trouble that is over; crashes are only once it has run for a while.
    pub(crate) fn recovered(&mut self) {
        self.hindrances = 0;
        if self.crashes == 0 {
            self.trouble = None;
        }
    }

    /// Forgets what went wrong.
    pub(crate) fn forgive(&mut self) {
        (self.crashes, self.hindrances) = (0, 0);
        self.not_before = None;
        self.trouble = None;
    }

    pub(crate) fn wait(&mut self, waiter: Waiter) {
        self.forget_gone();
        if self.waiters.len() < MOST_WAITERS {
            self.waiters.push(waiter);
        } else {
            drop(waiter.send(Err(Refusal::Crowded)));
        }
    }

    /// Those who have left wait no more.
    pub(crate) fn forget_gone(&mut self) {
        self.waiters.retain(|waiter| !waiter.is_closed());
    }

    pub(crate) fn answer(&mut self, answer: &Result<Live, Refusal>) {
        for waiter in self.waiters.drain(..) {
            // Who has left needs no answer.
            drop(waiter.send(answer.clone()));
        }
    }

    /// What the edge is told.
    pub(crate) fn live(&self, now: Instant) -> Live {
        let state = match self.status() {
            _ if self.crashed(now) => State::Crashed,
            // Named as it will be: the edge asks before it sends anything there again.
            Some(Status::Running) if self.level < Level::Awake || self.held.is_some() => {
                State::Dozing
            }
            Some(Status::Running) if self.ready && !self.restart => State::Awake,
            Some(Status::Running) => State::Waking,
            _ if self.level == Level::Awake && (self.admitted || self.busy.is_some()) => {
                State::Waking
            }
            Some(Status::Paused) => State::Dozing,
            Some(Status::Stopped) => State::Asleep,
            None => State::Archived,
        };
        Live {
            state,
            address: self
                .making
                .as_ref()
                .filter(|_| matches!(state, State::Awake | State::Dozing))
                .map(|making| making.spec.address()),
            generation: self.generation,
            full: self.full,
            trouble: self.trouble.clone().or_else(|| self.misdeclared.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_goes_by_the_groups_times() {
        let times = Times {
            doze: Some(Duration::from_secs(60)),
            sleep: Some(Duration::from_secs(600)),
            archive: None,
        };
        for (idle, level) in [
            (0, Level::Awake),
            (60, Level::Dozing),
            (600, Level::Asleep),
            (1_000_000, Level::Asleep),
        ] {
            assert_eq!(times.level(Duration::from_secs(idle)), level);
        }
        assert_eq!(Times::default().level(Duration::MAX), Level::Awake);
    }

    #[test]
    fn a_removed_site_stays_as_long_as_a_backup_holds_it() {
        let now = Instant::now();
        let after = Duration::from_secs(30);
        let mut tenant = Tenant::new(now);
        assert!(!tenant.gone_for(after, now + after), "it is declared");
        tenant.undeclared = Some((now, Some(after)));
        assert!(!tenant.gone_for(after, now));
        assert!(tenant.gone_for(after, now + after));
        tenant.held = Some(Level::Dozing);
        assert!(!tenant.gone_for(after, now + after));
    }

    #[test]
    fn what_can_not_be_frozen_is_tried_less_often_and_ends_all_the_same() {
        let now = Instant::now();
        let mut tenant = Tenant::new(now);
        assert_eq!(tenant.freeze_or(Level::Asleep, now), [Step::Pause]);
        tenant.stiffened("busy", now);
        assert_eq!(tenant.freeze_or(Level::Asleep, now), []);
        let later = now + Duration::from_secs(2);
        assert_eq!(tenant.freeze_or(Level::Asleep, later), [Step::Pause]);
        tenant.stiffened("busy", later);
        assert_eq!(
            tenant.freeze_or(Level::Asleep, later + Duration::from_secs(2)),
            []
        );
        tenant.stiffened("busy", later);
        assert_eq!(tenant.freeze_or(Level::Asleep, later), [Step::Stop]);
        assert_eq!(
            tenant.freeze_or(Level::Dozing, later),
            [],
            "a doze is no reason to end"
        );
    }

    #[test]
    fn a_crash_loop_ends_and_is_told() {
        let now = Instant::now();
        let mut tenant = Tenant::new(now);
        for crash in 1..=MOST_CRASHES {
            assert!(!tenant.crashed(now));
            tenant.failed(format!("crash {crash}"), now);
            assert!(tenant.waits(now));
        }
        assert!(tenant.crashed(now));
        assert_eq!(tenant.live(now).state, State::Crashed);
        assert_eq!(tenant.live(now).trouble.as_deref(), Some("crash 5"));
        let later = now + SECOND_CHANCE;
        assert!(
            !tenant.crashed(later) && !tenant.waits(later),
            "one more try"
        );
        tenant.failed("again".into(), later);
        assert!(tenant.crashed(later), "and only one");
    }
}
