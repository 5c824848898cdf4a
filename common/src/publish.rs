//! The one pointer readers load.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::{observed::Observed, registry::Registry};

/// The registry in force. Loading it takes no lock; a reader keeps the world it loaded.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Registry>,
    generation: watch::Sender<u64>,
    /// Two sources write: the files and control. Readers never wait for them.
    writing: Mutex<()>,
}

impl Published {
    /// Publishes the first registry as generation 1.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::new(registry.with(Arc::clone(&registry.observed), 1).into()),
            generation: watch::Sender::new(1),
            writing: Mutex::default(),
        })
    }

    /// The registry of now.
    pub fn load(&self) -> Guard<Arc<Registry>> {
        self.current.load()
    }

    /// Replaces the registry in one store and wakes those who wait for a change. The old one comes
    /// back so that its caller, not a reader, pays for dropping it.
    #[must_use = "dropping 100,000 sites takes a while: choose where"]
    pub fn publish(&self, registry: Arc<Registry>) -> Arc<Registry> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // What was declared is new; what is observed goes on.
        let observed = Arc::clone(&self.current.load().observed);
        let generation = self.generation() + 1;
        let old = self
            .current
            .swap(registry.with(observed, generation).into());
        self.generation.send_replace(generation);
        drop(writing);
        old
    }

    /// Replaces what is observed in one store. Nobody who waits for a change of the files wakes.
    pub fn observe(&self, observed: Arc<Observed>) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load();
        let registry = current.with(observed, current.generation);
        self.current.store(registry.into());
    }

    /// Counts publications of files, from 1.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Wakes at each publication.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
