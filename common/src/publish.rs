//! The one pointer readers load.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::registry::Registry;

/// The registry in force. Loading it takes no lock; a reader keeps the world it loaded.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Registry>,
    generation: watch::Sender<u64>,
}

impl Published {
    /// Publishes the first registry as generation 1.
    pub fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::new(registry),
            generation: watch::Sender::new(1),
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
        let old = self.current.swap(registry);
        self.generation.send_modify(|generation| *generation += 1);
        old
    }

    /// Counts publications, from 1.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Wakes at each publication.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
