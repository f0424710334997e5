//! The only swap in the program: one writer publishes a snapshot, every worker reads it without a lock.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::Snapshot;

/// The writing end; lives on the control thread.
#[derive(Clone, Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
}

/// A worker's reading end: remembers what it saw, so that an unchanged snapshot costs one load and one compare.
pub struct Reader {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
}

impl Publisher {
    /// Starts with the empty snapshot.
    pub fn new() -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(Snapshot::empty())) }
    }

    /// Makes `snapshot` current for every request that starts from now on.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.current.store(snapshot);
    }

    /// What is current.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A reading end for one worker.
    pub fn reader(&self) -> Reader {
        Reader { cache: Cache::new(self.current.clone()) }
    }
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// The current snapshot. The reference is to be cloned by whoever keeps it over an await.
    pub fn current(&mut self) -> &Arc<Snapshot> {
        self.cache.load()
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
