//! Control: what runs, wakes and puts to sleep the containers of sites.
//!
//! - `fleet` owns every site and decides; `plan` (pure) says the steps, `budget` (pure) who makes
//!   room, `tenant` what one site is.
//! - `work` does the steps: `engine` and `docker`, `networks`, `walls` and `seat`, `files` and `disk`,
//!   `database`.
//! - `lease` keeps each site's uid and addresses; `spec` is what a container is made from.
//! - `socket` is where the edge and the command line ask; `backup` and [`frame`] are what goes over it.
//!
//! Everything is level-triggered: what is declared and what the engine has make the steps, so that a
//! restart of us or of the engine comes to the same world.

mod backup;
mod budget;
mod database;
mod disk;
mod docker;
mod engine;
mod files;
mod fleet;
pub mod frame;
mod lease;
mod memory;
mod metrics;
mod networks;
mod plan;
mod seat;
mod socket;
mod spec;
mod tenant;
mod walls;
mod work;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use common::{Config, Published, observed::Observed};
use futures_util::{StreamExt, stream};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};

use crate::{
    database::Database,
    docker::DockerEngine,
    files::Folders,
    fleet::{Command, Fleet, NEWS},
    lease::Leases,
    metrics::Wakes,
    networks::Networks,
    socket::Socket,
    work::Work,
};

pub use crate::{fleet::Capacity, tenant::Refusal};

/// Commands on their way to the fleet.
const COMMANDS: usize = 1_024;
/// Containers removed at once by `uninstall`.
const REMOVED_AT_ONCE: usize = 4;
/// Before an engine that is gone is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// The name servers of this machine.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Running control. Dropping it stops it; containers run on.
#[derive(Debug)]
pub struct Control {
    tasks: JoinSet<()>,
    path: PathBuf,
}

/// Why control did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder.
    #[error("can't use the leases in the state folder")]
    Leases(#[source] io::Error),
    /// The key of the database passwords.
    #[error("can't use the database key in the state folder")]
    Database(#[source] io::Error),
    /// The control socket.
    #[error("can't listen on the control socket {0}")]
    Socket(PathBuf, #[source] io::Error),
    /// A metric of this crate exists already.
    #[error("can't register the metrics of containers")]
    Metrics(#[from] prometheus::Error),
}

/// Starts control over what `published` declares.
///
/// # Errors
/// The state folder, the control socket or a metric. An engine that does not answer is none: it is
/// asked again and again.
pub fn start(
    config: &Config,
    published: &Arc<Published>,
    registry: &prometheus::Registry,
) -> Result<Control, StartError> {
    let parts = Parts::open(config)?;
    let path = config.containers.socket.clone();
    let listener = socket::bind(&path, config.containers.edge_user.as_deref())
        .map_err(|error| StartError::Socket(path.clone(), error))?;
    // Now that no other control is at work.
    if let Err(error) = parts.work.folders.tidy() {
        tracing::warn!(%error, "what a backup or restore left that was cut short can't be removed");
    }

    let (commands, received) = mpsc::channel(COMMANDS);
    let (news, _) = broadcast::channel(NEWS);
    let observed = watch::Sender::new(Arc::new(Observed::new()));
    let ready = watch::Sender::new(false);
    let wakes = Wakes::register(registry, observed.subscribe())?;
    let (resync, resyncs) = mpsc::channel(1);
    let fleet = Fleet::new(
        config.containers.clone(),
        Arc::clone(published),
        parts.leases,
        Arc::clone(&parts.work),
        news.clone(),
        observed.clone(),
        ready.clone(),
        Arc::clone(&wakes),
        resync,
    );
    let socket = Socket {
        commands: commands.clone(),
        news,
        observed: observed.subscribe(),
        ready: ready.subscribe(),
        work: Arc::clone(&parts.work),
        wakes,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(fleet.run(received));
    tasks.spawn(follow(Arc::clone(&parts.work), commands, resyncs));
    tasks.spawn(socket.serve(listener));
    Ok(Control { tasks, path })
}

impl Control {
    /// Waits for a part of control to end, which none does by itself.
    pub async fn ended(&mut self) {
        // A panic has been printed where it happened.
        drop(self.tasks.join_next().await);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.tasks.abort_all();
        // A socket nobody listens on only makes errors harder to read.
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}

/// What has been removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Containers.
    pub containers: usize,
    /// Networks.
    pub networks: usize,
}

/// Removes every container, network, mount and firewall rule of this instance. Files, leases and
/// databases stay. `progress` hears how many containers of how many are gone.
///
/// # Errors
/// The state folder or the engine.
pub async fn uninstall(
    config: &Config,
    mut progress: impl FnMut(usize, usize),
) -> Result<Removed, String> {
    let parts = Parts::open(config).map_err(|error| error.to_string())?;
    let engine = &*parts.work.engine;
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let containers = engine.containers().await.map_err(|error| told(&error))?;
    let all = containers.len();
    let removing = containers
        .into_iter()
        .map(async |container| engine.remove(&container.id).await);
    let mut removing = stream::iter(removing)
        .buffer_unordered(REMOVED_AT_ONCE)
        .enumerate();
    while let Some((before, removed)) = removing.next().await {
        removed.map_err(|error| told(&error))?;
        progress(before + 1, all);
    }
    let networks = parts.work.networks.raze(engine).await;
    for (site, _) in parts.leases.sites() {
        let folder = parts.work.folders.site(site);
        disk::unmount(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    parts
        .work
        .folders
        .tidy()
        .map_err(|error| error.to_string())?;
    Ok(Removed {
        containers: all,
        networks: networks.map_err(|error| told(&error))?,
    })
}

/// Where a site's files are, whether or not control runs.
pub fn files_of(state: &Path, site: &str) -> PathBuf {
    Folders::new(state).files(site)
}

struct Parts {
    leases: Leases,
    work: Arc<Work>,
}

impl Parts {
    fn open(config: &Config) -> Result<Self, StartError> {
        let settings = &config.containers;
        let leases = Leases::open(&config.state, settings).map_err(StartError::Leases)?;
        let database = settings
            .database
            .as_ref()
            .map(|settings| Database::open(settings, &config.state))
            .transpose()
            .map_err(StartError::Database)?;
        let resolvers = if settings.resolvers.is_empty() {
            resolvers_of_this_machine()
        } else {
            settings.resolvers.clone()
        };
        let networks = Networks::new(
            &leases.instance,
            resolvers,
            database.as_ref().map(Database::port),
            leases.networks().cloned().collect(),
        );
        let starts = match settings.starts {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            starts => starts,
        };
        let engine = Arc::new(DockerEngine::new(settings, &leases.instance));
        let folders = Folders::new(&config.state);
        let work = Arc::new(Work::new(engine, folders, database, networks, starts));
        Ok(Self { leases, work })
    }
}

/// Tells the fleet what the engine has and does, for as long as there is a fleet.
async fn follow(work: Arc<Work>, commands: mpsc::Sender<Command>, mut resyncs: mpsc::Receiver<()>) {
    let mut told = false;
    loop {
        // Events from before the list are heard twice rather than not at all.
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let asked = Instant::now();
        let why = match work.engine.containers().await {
            Err(error) => error.to_string(),
            Ok(found) => {
                told = false;
                if commands.send(Command::Resync(asked, found)).await.is_err() {
                    return;
                }
                let mut events = work.engine.events(since);
                loop {
                    tokio::select! {
                        event = events.next() => match event {
                            Some(Ok(event)) => {
                                if commands.send(Command::Engine(event)).await.is_err() {
                                    return;
                                }
                            }
                            Some(Err(error)) => break error.to_string(),
                            None => break "it ended".to_owned(),
                        },
                        Some(()) = resyncs.recv() => {
                            let asked = Instant::now();
                            match work.engine.containers().await {
                                Ok(found) => {
                                    let news = Command::Resync(asked, found);
                                    if commands.send(news).await.is_err() {
                                        return;
                                    }
                                }
                                Err(error) => break error.to_string(),
                            }
                        }
                    }
                }
            }
        };
        if !told {
            told = true;
            if commands.send(Command::Lost(why)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What this machine itself asks; a loopback address means nothing inside a container.
fn resolvers_of_this_machine() -> Vec<std::net::IpAddr> {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
        .filter(|address: &std::net::IpAddr| !address.is_loopback())
        .collect()
}
