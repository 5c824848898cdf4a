//! Doing what the plan says, for one site at a time: the only place that touches the engine, the
//! disks and the database on a site's behalf.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use futures_util::StreamExt;
use tokio::{
    net::TcpStream,
    sync::{Notify, Semaphore},
};

use crate::{
    database::Database,
    engine::{Engine, EngineError, Status},
    files::Folders,
    lease::NetworkLease,
    networks::Networks,
    plan::{Seen, Step},
    seat,
    spec::Spec,
    walls::WallsError,
};

/// Freezing, stopping and removing at once; starting has a bound of its own.
const MOVES: usize = 8;
/// How long a site may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);
/// Between looks at whether a started site listens.
const PROBE: Duration = Duration::from_millis(3);
/// One such look; a full backlog or a lost packet is another.
const PROBE_AT_MOST: Duration = Duration::from_millis(250);
/// How long a starting site keeps others from starting; past it, it waits for something else than
/// the processors.
const START_WEIGHT: Duration = Duration::from_secs(2);
/// What a failing site is shown with.
const LAST_LINES: u32 = 10;
const LAST_OCTETS: usize = 4_096;
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// Everything work is done with.
pub(crate) struct Work {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) folders: Folders,
    pub(crate) database: Option<Database>,
    pub(crate) networks: Networks,
    starts: Arc<Semaphore>,
    /// Sites that wait for one of those.
    queued: AtomicUsize,
    moves: Arc<Semaphore>,
}

/// What to do to one site.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) site: Arc<str>,
    /// What to make it from; `None` for a site that is declared no more.
    pub(crate) making: Option<Making>,
    pub(crate) steps: Vec<Step>,
    pub(crate) seen: Option<Seen>,
    /// Told when the container ends meanwhile.
    pub(crate) died: Arc<Notify>,
    /// Whether its files and database go too.
    pub(crate) discard: bool,
    /// Whether a database of its own goes with them.
    pub(crate) had_database: bool,
}

/// What a container is made with.
#[derive(Clone, Debug)]
pub(crate) struct Making {
    pub(crate) spec: Arc<Spec>,
    /// Of the spec, told once: it is compared at every look.
    pub(crate) digest: Arc<str>,
    pub(crate) network: NetworkLease,
    pub(crate) quota: Option<u64>,
    pub(crate) database: bool,
    pub(crate) ready_within: Duration,
}

/// What came of a job.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seen: Option<Seen>,
    pub(crate) error: Option<WorkError>,
    /// The step that failed.
    pub(crate) failed: Option<Step>,
    /// What the container printed last, when it did not start.
    pub(crate) said: String,
}

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Walls(#[from] WallsError),
    /// The site's folder or disk.
    #[error("can't make the site's files ready: {0}")]
    Files(io::Error),
    /// The site's database.
    #[error("can't make the site's database ready: {0}")]
    Database(io::Error),
    /// The site asks for what the configuration lacks.
    #[error("the site wants a database, and nuage.toml has no [database]")]
    NoDatabase,
    /// The container ended before it listened.
    #[error("its container ended at once")]
    Ended,
    /// The container runs and does not listen.
    #[error("nothing listens on port {port} of its container after {after:?}")]
    Silent { port: u16, after: Duration },
}

impl WorkError {
    /// Whether trying again is of no use before somebody mends the site: what it stands on is there.
    pub(crate) fn is_a_crash(&self) -> bool {
        matches!(
            self,
            Self::Ended | Self::Silent { .. } | Self::Engine(EngineError::Unfit(_))
        )
    }

    /// Whether the engine is to blame, and not the site.
    pub(crate) fn is_engine_gone(&self) -> bool {
        matches!(
            self,
            Self::Engine(EngineError::Unreachable(..) | EngineError::Late(_))
        )
    }
}

impl Work {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        folders: Folders,
        database: Option<Database>,
        networks: Networks,
        starts: usize,
    ) -> Self {
        Self {
            engine,
            folders,
            database,
            networks,
            starts: Arc::new(Semaphore::new(starts)),
            queued: AtomicUsize::new(0),
            moves: Arc::new(Semaphore::new(MOVES)),
        }
    }

    /// Whether sites wait for others to have started.
    pub(crate) fn crowded(&self) -> bool {
        self.queued.load(Relaxed) > 0
    }

    /// Does the steps in their order; the first that fails is the last.
    pub(crate) async fn run(&self, job: Job) -> (Arc<str>, Outcome) {
        let mut seen = job.seen.clone();
        let mut error = None;
        let mut said = String::new();
        let mut failed = None;
        for &step in &job.steps {
            if let Err(why) = self.step(step, &job, &mut seen).await {
                if let (Step::Start, Some(seen)) = (step, &seen) {
                    said = self.last_lines(&seen.id).await;
                }
                failed = Some(step);
                error = Some(why);
                break;
            }
        }
        if error.is_none() && job.discard {
            error = self.discard(&job).await.err();
        }
        (
            job.site,
            Outcome {
                seen,
                error,
                failed,
                said,
            },
        )
    }

    async fn step(&self, step: Step, job: &Job, seen: &mut Option<Seen>) -> Result<(), WorkError> {
        if step == Step::Create {
            *seen = Some(self.create(job).await?);
            return Ok(());
        }
        let Some(container) = seen.as_mut() else {
            return Ok(());
        };
        match step {
            Step::Create => {}
            Step::Start => {
                container.status = Status::Stopped;
                self.start(job, container).await?;
            }
            Step::Unpause => {
                self.engine.unpause(&container.id).await?;
                container.status = Status::Running;
            }
            Step::Pause => {
                let _permit = self.moves.acquire().await;
                self.engine.pause(&container.id).await?;
                container.status = Status::Paused;
            }
            Step::Stop => {
                let _permit = self.moves.acquire().await;
                self.engine.stop(&container.id, GRACE).await?;
                container.status = Status::Stopped;
            }
            Step::Remove => {
                let _permit = self.moves.acquire().await;
                self.engine.remove(&container.id).await?;
                *seen = None;
            }
        }
        Ok(())
    }

    /// Everything a container stands on, and then the container.
    async fn create(&self, job: &Job) -> Result<Seen, WorkError> {
        let Some(making) = &job.making else {
            return Err(WorkError::Ended);
        };
        self.networks.ensure(&making.network, &*self.engine).await?;
        self.ready_files(making, true).await?;
        let id = self.engine.create(&making.spec).await?;
        Ok(Seen {
            id,
            digest: making.digest.to_string(),
            status: Status::Stopped,
        })
    }

    /// The site's folder, disk and database; `at_rest` when no container of it runs.
    pub(crate) async fn ready_files(
        &self,
        making: &Making,
        at_rest: bool,
    ) -> Result<(), WorkError> {
        let (folders, spec, quota) = (self.folders.clone(), Arc::clone(&making.spec), making.quota);
        tokio::task::spawn_blocking(move || folders.prepare(&spec.site, spec.uid, quota, at_rest))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(WorkError::Files)?;
        if making.database {
            let database = self.database.as_ref().ok_or(WorkError::NoDatabase)?;
            database
                .prepare(&making.spec.site)
                .await
                .map_err(WorkError::Database)?;
        }
        Ok(())
    }

    async fn start(&self, job: &Job, container: &mut Seen) -> Result<(), WorkError> {
        let Some(making) = &job.making else {
            return Err(WorkError::Ended);
        };
        self.queued.fetch_add(1, Relaxed);
        let permit = Arc::clone(&self.starts).acquire_owned().await;
        self.queued.fetch_sub(1, Relaxed);
        // What it stands on may have gone since it was made: a restart of the machine unmounts disks.
        self.networks.ensure(&making.network, &*self.engine).await?;
        self.ready_files(making, true).await?;
        self.engine.start(&container.id).await?;
        container.status = Status::Running;
        let seated = self.seat(making, &container.id);
        let address = making.spec.address();
        let heavy = async {
            tokio::time::sleep(START_WEIGHT).await;
            drop(permit);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (listening, ()) = async { tokio::join!(listens(address, making.ready_within), seated) } => listening,
            () = self.ends(&container.id, &job.died) => {
                container.status = Status::Stopped;
                Err(WorkError::Ended)
            }
            () = heavy => Ok(()),
        }
    }

    /// Waits until a container has ended. News of an earlier end may come late: it is asked.
    async fn ends(&self, id: &str, died: &Notify) {
        loop {
            died.notified().await;
            if !matches!(self.engine.pid(id).await, Ok(Some(_))) {
                return;
            }
        }
    }

    /// Locks the container's end of the bridge to its own address. The walls stand without that too,
    /// as no site can make frames of its own.
    async fn seat(&self, making: &Making, id: &str) {
        if making.network.parent.is_some() {
            return;
        }
        if let Ok(Some(pid)) = self.engine.pid(id).await
            && let Err(error) = seat::seat(&making.network.interface, pid, making.spec.ipv4).await
        {
            tracing::warn!(site = %making.spec.site, %error, "its port on the bridge is not locked");
        }
    }

    /// The last lines a container printed, for whoever has to mend it.
    pub(crate) async fn last_lines(&self, id: &str) -> String {
        let mut text = Vec::new();
        let mut lines = self.engine.logs(id, Some(LAST_LINES), false);
        let read = async {
            while let Some(Ok(piece)) = lines.next().await {
                text.extend_from_slice(&piece.bytes);
                if text.len() > LAST_OCTETS {
                    break;
                }
            }
        };
        // An engine that is slow to tell must not keep the site from being told of.
        drop(tokio::time::timeout(LAST_WITHIN, read).await);
        text.truncate(LAST_OCTETS);
        let text = String::from_utf8_lossy(&text);
        let printable = |c: char| if c == '\n' || !c.is_control() { c } else { ' ' };
        text.trim_end().chars().map(printable).collect()
    }

    async fn discard(&self, job: &Job) -> Result<(), WorkError> {
        let site = Arc::clone(&job.site);
        let database = self.database.as_ref().filter(|_| job.had_database);
        let dumped = match database {
            // The dump goes into the bin with the files, so that a site can come back whole.
            Some(database) => self.last_dump(database, &site).await,
            None => Ok(()),
        };
        // Whatever became of the dump: a database that fails must not keep the files in their place. One
        // that is made later goes to them.
        let (folders, name) = (self.folders.clone(), Arc::clone(&site));
        tokio::task::spawn_blocking(move || folders.discard(&name, SystemTime::now()))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(WorkError::Files)?;
        // Last: until its dump is in the bin, the database is all there is.
        dumped.map_err(WorkError::Database)?;
        if let Some(database) = database {
            database.discard(&site).await.map_err(WorkError::Database)?;
        }
        Ok(())
    }

    /// Dumps a database that is about to go, as far as it can be.
    async fn last_dump(&self, database: &Database, site: &str) -> io::Result<()> {
        if database.exists(site).await? {
            let dump = self.folders.work(site)?.join(crate::backup::DUMP);
            database.dump(site, &dump).await?;
        }
        Ok(())
    }
}

/// Waits until something accepts connections.
async fn listens(address: SocketAddr, within: Duration) -> Result<(), WorkError> {
    let started = Instant::now();
    while started.elapsed() < within {
        if let Ok(Ok(_)) = tokio::time::timeout(PROBE_AT_MOST, TcpStream::connect(address)).await {
            return Ok(());
        }
        tokio::time::sleep(PROBE).await;
    }
    Err(WorkError::Silent {
        port: address.port(),
        after: within,
    })
}
