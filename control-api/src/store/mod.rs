//! Purpose: keep the policy: one embedded database, one transaction per apply, one current set.
//! Shape: [`Store`] owns the database and the published [`PolicySet`]; readers take an `Arc` or
//! wait on a watch; writers go one at a time through [`Store::commit`].
//!
//! ```text
//! changes ─▶ preconditions ─▶ link ─▶ transaction (durable) ─▶ publish
//!               │ 409/412        │ 422        │ 507/500: nothing published, nothing lost
//! ```
//! Errors: [`StoreError`]; after a failed write the database is opened anew at the next commit.
//! Limits: the last 1,000 changes are kept for watchers to resume from.
//! Cancel: a commit runs on a blocking thread and ends whether or not its caller still waits.
//! Tests: `tests.rs` (disk full), `tests/crash.rs` (kill -9 in a loop).

mod change;
mod error;
mod redb_file;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

pub use change::{Change, Changes, Outcome, Record, Write};
pub use error::StoreError;
pub use redb_file::RedbFile;

use crate::model::PolicySet;

/// The stored policy.
#[derive(Debug)]
pub struct Store {
    file: Mutex<RedbFile>,
    current: watch::Sender<Arc<PolicySet>>,
}

impl Store {
    /// Opens or creates the store at `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::over(RedbFile::open(path)?)
    }

    /// A store over an opened file.
    pub fn over(mut file: RedbFile) -> Result<Self, StoreError> {
        let set = file.load()?;
        Ok(Self { file: Mutex::new(file), current: watch::channel(Arc::new(set)).0 })
    }

    /// The set as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<PolicySet> {
        self.current.borrow().clone()
    }

    /// Sees every later set; intermediate ones may be skipped.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.current.subscribe()
    }

    /// Applies `changes`, all or nothing. Blocks on the disk.
    pub fn commit(&self, changes: &Changes) -> Result<Outcome, StoreError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_closed() {
            // A failed write may or may not have reached the disk; the disk decides.
            self.current.send_replace(Arc::new(file.load()?));
        }
        let before = self.current();
        let plan = change::plan(&before, changes)?;
        if plan.records.is_empty() || changes.is_dry_run {
            return Ok(Outcome { revision: before.revision, ..plan.outcome });
        }
        file.write(&plan)?;
        self.current.send_replace(Arc::new(plan.set));
        Ok(plan.outcome)
    }

    /// The changes after `revision`, oldest first; `None` when some are no longer kept.
    pub fn history_since(&self, revision: u64) -> Result<Option<Vec<Record>>, StoreError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.history_since(revision, self.current().revision)
    }
}
