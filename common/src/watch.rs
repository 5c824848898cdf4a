//! Following the files: a change is read as soon as it lands, and a periodic look catches what no
//! event told.

use std::{
    collections::HashSet,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::{declared::Declared, journal::Journal, problem::Problem, publish::Published};

/// Events of one change come together: wait this long for the last of them.
const SETTLE: Duration = Duration::from_millis(3);
/// A folder that never rests is read all the same after this long.
const SETTLE_AT_MOST: Duration = Duration::from_millis(20);
/// How often to look without an event.
const LOOK: Duration = Duration::from_secs(2);
/// How long readers may still hold a replaced registry before its memory is given back.
const RETIRE: Duration = Duration::from_millis(200);

/// What a look at the files came to.
#[derive(Debug)]
pub struct Looked {
    /// Whether a new registry was published.
    pub published: bool,
    /// Everything wrong now.
    pub problems: Vec<Problem>,
    /// From the first event to the publication.
    pub took: Duration,
}

/// Reads `nuage.toml` again, as SIGHUP asks.
#[derive(Clone, Copy, Debug)]
pub struct Reload;

/// Publishes changes until the future is dropped, each kept in `journal` before. `observe` is told of
/// each look that published something or found other problems than the one before.
pub async fn follow(
    declared: Declared,
    published: Arc<Published>,
    journal: Option<Arc<Journal>>,
    mut reloads: mpsc::Receiver<Reload>,
    observe: impl Fn(&Looked),
) {
    let folder = declared.config().zones.clone();
    let mut served = Arc::clone(declared.registry());
    let declared = Arc::new(Mutex::new(declared));
    // One slot: an event that finds it full has been told already.
    let (events, mut changed) = mpsc::channel(1);
    let mut watching = Watching::new(folder, events);
    let mut known: HashSet<String> = texts(&lock(&declared).problems());
    let mut look = tokio::time::interval(LOOK);
    loop {
        let mut reload = false;
        let mut started = Instant::now();
        tokio::select! {
            _ = look.tick() => watching.renew(),
            Some(()) = changed.recv() => {
                started = Instant::now();
                while started.elapsed() < SETTLE_AT_MOST
                    && tokio::time::timeout(SETTLE, changed.recv()).await.is_ok() {}
            }
            Some(Reload) = reloads.recv() => reload = true,
        }
        let worker = Arc::clone(&declared);
        let (journal, old) = (journal.clone(), Arc::clone(&served));
        let read = tokio::task::spawn_blocking(move || {
            let mut declared = lock(&worker);
            if reload {
                declared.reload();
            } else {
                declared.refresh();
            }
            // Also what an earlier look compiled and didn't come to publish.
            let new = Arc::clone(declared.registry());
            let registry = (!Arc::ptr_eq(&old, &new)).then_some(new);
            if registry.is_some()
                && let Err(error) = declared.save_serials()
            {
                tracing::error!(%error, "can't keep the zones' serials in the state folder; serving all the same");
            }
            if let (Some(journal), Some(new)) = (journal, &registry) {
                journal.follow(&old, new);
            }
            (
                registry,
                declared.problems(),
                declared.config().zones.clone(),
            )
        });
        let Ok((registry, problems, folder)) = read.await else {
            tracing::error!(
                "reading the zone files failed unexpectedly; what was served is still served"
            );
            continue;
        };
        watching.move_to(folder);
        let new = registry.is_some();
        if let Some(registry) = registry {
            served = Arc::clone(&registry);
            let old = published.publish(registry);
            // Readers let go of it within moments; its memory is freed where nobody waits.
            tokio::spawn(async move {
                tokio::time::sleep(RETIRE).await;
                tokio::task::spawn_blocking(move || drop(old));
            });
        }
        let now = texts(&problems);
        if new || reload || now != known {
            known = now;
            observe(&Looked {
                published: new,
                problems,
                took: started.elapsed(),
            });
        }
    }
}

fn lock(declared: &Mutex<Declared>) -> std::sync::MutexGuard<'_, Declared> {
    declared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn texts(problems: &[Problem]) -> HashSet<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// The event source on the zones folder, made anew when the folder itself is replaced.
struct Watching {
    folder: PathBuf,
    events: mpsc::Sender<()>,
    watcher: Option<(RecommendedWatcher, u64)>,
}

impl Watching {
    fn new(folder: PathBuf, events: mpsc::Sender<()>) -> Self {
        let mut watching = Self {
            folder,
            events,
            watcher: None,
        };
        watching.renew();
        watching
    }

    /// Watches another folder when the configuration names one.
    fn move_to(&mut self, folder: PathBuf) {
        if folder != self.folder {
            (self.folder, self.watcher) = (folder, None);
            self.renew();
        }
    }

    fn renew(&mut self) {
        let inode = inode(&self.folder);
        if inode.is_some() && inode == self.watcher.as_ref().map(|(_, inode)| *inode) {
            return;
        }
        let events = self.events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is an event too, and no change.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                // A full slot holds the same news.
                let (Ok(()) | Err(_)) = events.try_send(());
            }
        })
        .and_then(|mut watcher| {
            watcher
                .watch(&self.folder, RecursiveMode::NonRecursive)
                .map(|()| watcher)
        });
        self.watcher = match watcher {
            Ok(watcher) => inode.map(|inode| (watcher, inode)),
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, every = ?LOOK, "no change events from the zones folder: looking at it from time to time");
                None
            }
        };
    }
}

fn inode(folder: &Path) -> Option<u64> {
    std::fs::metadata(folder).ok().map(|meta| meta.ino())
}
