//! The edge's end of the control socket: it follows what is observed, asks for wakes, and reports who
//! is looked at.
//!
//! What was observed last is kept on disk: while control is away, everything that is awake goes on
//! being served, also by an edge that has just started.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use common::{
    Published,
    durable::{self, Access},
    observed::{Change, Live, Observed, State},
};
use http::Method;
use http_body_util::BodyExt;
use proxy::{Refusal, Visits, Waker};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::control::{self, Client, ControlError};

/// Between reports of who is looked at.
const REPORT: Duration = Duration::from_secs(1);
/// Between writes of what is observed.
const KEEP: Duration = Duration::from_secs(1);
/// A stream says something at least every two seconds.
const SILENT: Duration = Duration::from_secs(10);
/// Before control is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a wake waits for control itself to be there: it may just be restarting.
const ABSENT: Duration = Duration::from_secs(10);
/// How long a site control has not heard of is asked for.
const UNKNOWN: Duration = Duration::from_secs(3);
/// The longest control may take to hear a report.
const HEARD: Duration = Duration::from_secs(10);
/// Requests waiting for one site at once.
const MOST_WAITERS: usize = 1_000;
/// The longest line of the stream.
const LINE: usize = 64 << 10;

/// One wake, for all who wait for it.
type Wake = watch::Sender<Woken>;
type Woken = Option<Result<Live, Refusal>>;

/// The edge's view of control.
#[derive(Debug)]
pub(crate) struct Link {
    client: Client,
    published: Arc<Published>,
    visits: Arc<Visits>,
    wakes: Mutex<HashMap<Arc<str>, Wake>>,
    kept: PathBuf,
}

impl Link {
    /// Starts from what was observed last.
    pub(crate) fn new(
        client: Client,
        published: Arc<Published>,
        visits: Arc<Visits>,
        folder: &std::path::Path,
    ) -> Arc<Self> {
        let kept = folder.join("observed.json");
        if let Some(observed) = read(&kept) {
            published.observe(Arc::new(observed));
        }
        Arc::new(Self {
            client,
            published,
            visits,
            wakes: Mutex::default(),
            kept,
        })
    }

    /// Follows, reports and keeps until the set is dropped.
    pub(crate) fn start(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(self).follow());
        tasks.spawn(Arc::clone(self).report());
        tasks.spawn(Arc::clone(self).keep());
        tasks
    }

    async fn follow(self: Arc<Self>) {
        let mut told = false;
        loop {
            match self.stream(&mut told).await {
                Ok(()) => {}
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(%error, "control is away: what is awake is served, nothing wakes");
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Follows one stream to its end.
    async fn stream(&self, told: &mut bool) -> Result<(), ControlError> {
        let answer = self
            .client
            .open(Method::GET, "/v1/observed", control::nothing())
            .await?;
        let mut body = answer.into_body();
        let mut rest: Vec<u8> = Vec::new();
        // Until everything has been said once, what was known before stands.
        let mut observed = Observed::new();
        let mut whole = false;
        let mut changed = Vec::new();
        while let Ok(Some(Ok(piece))) = timeout(SILENT, body.frame()).await {
            let Ok(octets) = piece.into_data() else {
                continue;
            };
            rest.extend_from_slice(&octets);
            let mut news = false;
            while let Some(end) = rest.iter().position(|&octet| octet == b'\n') {
                let change: Change = serde_json::from_slice(&rest[..end])
                    .map_err(|error| ControlError::Odd(error.into()))?;
                rest.drain(..=end);
                match change {
                    Change::Alive => continue,
                    Change::Whole => {
                        whole = true;
                        if std::mem::take(told) {
                            tracing::info!("control is back");
                        }
                    }
                    Change::Gone(site) => drop(observed.remove(&site)),
                    Change::Site(site, live) => {
                        changed.push(Arc::clone(&site));
                        observed.insert(site, live);
                    }
                }
                news = true;
            }
            if rest.len() > LINE {
                return Err(ControlError::Odd(anyhow::anyhow!("a line without end")));
            }
            if news && whole {
                self.observe(&observed, &changed);
                changed.clear();
            }
        }
        Ok(())
    }

    /// Publishes what is observed. A site that goes to sleep with requests under way is asked for again
    /// at once: they wait in it. Looked at once it is published: a request that begins later finds it
    /// so, one that began earlier is counted.
    fn observe(&self, observed: &Observed, changed: &[Arc<str>]) {
        self.published.observe(Arc::new(observed.clone()));
        for site in changed {
            let state = observed.get(site).map(|live| live.state);
            if matches!(state, Some(State::Dozing | State::Asleep))
                && self.visits.in_flight(site) > 0
            {
                self.wake_once(site);
            }
        }
    }

    async fn report(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REPORT).await;
            let report = self.visits.report();
            if report.is_empty() {
                continue;
            }
            let text = serde_json::to_vec(&report).unwrap_or_default();
            // Control that is away puts nothing to sleep either.
            let said = self.client.act("/v1/activity", control::whole(text));
            drop(timeout(HEARD, said).await);
        }
    }

    async fn keep(self: Arc<Self>) {
        let mut last: Option<Arc<Observed>> = None;
        loop {
            tokio::time::sleep(KEEP).await;
            let observed = Arc::clone(&self.published.load().observed);
            if last
                .as_ref()
                .is_some_and(|last| Arc::ptr_eq(last, &observed))
            {
                continue;
            }
            let (path, content) = (self.kept.clone(), Arc::clone(&observed));
            let written = tokio::task::spawn_blocking(move || write(&path, &content)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(path = %self.kept.display(), %error, "can't keep what is observed for the next start");
            }
            last = Some(observed);
        }
    }

    /// The wake of a site that is under way, or a new one; `None` when too many wait already.
    fn wake_once(&self, site: &Arc<str>) -> Option<watch::Receiver<Woken>> {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are over are of no use to anybody new.
        wakes.retain(|_, wake| wake.borrow().is_none());
        if let Some(wake) = wakes.get(site) {
            return (wake.receiver_count() < MOST_WAITERS).then(|| wake.subscribe());
        }
        let (done, wake) = watch::channel(None);
        wakes.insert(Arc::clone(site), done.clone());
        let (client, site) = (self.client.clone(), Arc::clone(site));
        tokio::spawn(async move {
            let woken = wake_by_control(&client, &site).await;
            done.send_replace(Some(woken));
        });
        Some(wake)
    }
}

#[async_trait]
impl Waker for Link {
    async fn wake(&self, site: Arc<str>) -> Result<Live, Refusal> {
        let mut wake = self.wake_once(&site).ok_or(Refusal::Full)?;
        let woken = wake.wait_for(Option::is_some).await;
        woken
            .ok()
            .and_then(|woken| woken.clone())
            .unwrap_or(Err(Refusal::NoControl))
    }
}

async fn wake_by_control(client: &Client, site: &str) -> Result<Live, Refusal> {
    let asked = tokio::time::Instant::now();
    loop {
        let path = control::site(site, "wake");
        match client
            .ask::<Live>(Method::POST, &path, control::nothing())
            .await
        {
            Ok(live) => return Ok(live),
            // A file is read here and there: control may learn of a new site a moment later.
            Err(ControlError::Refused { reason, .. })
                if reason == "unknown" && asked.elapsed() < UNKNOWN =>
            {
                tokio::time::sleep(AGAIN).await;
            }
            Err(ControlError::Refused { reason, .. }) => {
                return Err(match reason.as_str() {
                    "full" | "crowded" => Refusal::Full,
                    "stopping" | "late" => Refusal::NoControl,
                    _ => Refusal::Failing,
                });
            }
            Err(_) if asked.elapsed() < ABSENT => tokio::time::sleep(AGAIN).await,
            Err(error) => {
                tracing::debug!(%error, site, "control can't be asked to wake a site");
                return Err(Refusal::NoControl);
            }
        }
    }
}

fn read(path: &std::path::Path) -> Option<Observed> {
    let text = std::fs::read(path).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "what was observed last can't be read"))
        .ok()
}

fn write(path: &std::path::Path, observed: &Observed) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_vec(observed).map_err(io::Error::other)?;
    durable::replace(path, &text, Access::Owner)
}
