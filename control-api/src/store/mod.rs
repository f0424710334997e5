//! Purpose: keep the policy: one place where it lives, one current set.
//! Shape: [`Store`] is what the API sees; [`FileStore`] keeps an embedded database, `kubernetes` has the one that keeps
//! policy in the cluster. Readers take an `Arc` or wait on a watch; writers go one at a time through [`Store::commit`].
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

use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

pub use change::{Change, Changes, Objects, Outcome, Plan, Record, Write, plan};
pub use error::StoreError;
pub use redb_file::RedbFile;

use crate::model::PolicySet;

/// Where policy is kept.
pub trait Store: Debug + Send + Sync {
    /// The set as it is now.
    fn current(&self) -> Arc<PolicySet>;

    /// Sees every later set; intermediate ones may be skipped.
    fn subscribe(&self) -> watch::Receiver<Arc<PolicySet>>;

    /// Applies `changes`, all or nothing. Blocks until they are kept.
    fn commit(&self, changes: &Changes) -> Result<Outcome, StoreError>;

    /// The changes after `revision`, oldest first; `None` when some are no longer kept.
    fn history_since(&self, revision: u64) -> Result<Option<Vec<Record>>, StoreError>;
}

/// What nobody stored, such as the Services and pods of a cluster; stored objects may refer to it.
pub type Registered = watch::Receiver<Arc<PolicySet>>;

/// The policy in one embedded database; one transaction per apply.
#[derive(Debug)]
pub struct FileStore {
    file: Mutex<RedbFile>,
    current: watch::Sender<Arc<PolicySet>>,
    registered: Option<Registered>,
}

impl FileStore {
    /// Opens or creates the store at `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::over(RedbFile::open(path)?)
    }

    /// A store over an opened file.
    pub fn over(mut file: RedbFile) -> Result<Self, StoreError> {
        let set = file.load()?;
        Ok(Self { file: Mutex::new(file), current: watch::channel(Arc::new(set)).0, registered: None })
    }

    /// Lets stored objects refer to registered ones.
    #[must_use]
    pub fn beside(mut self, registered: Option<Registered>) -> Self {
        self.registered = registered;
        self
    }
}

impl Store for FileStore {
    fn current(&self) -> Arc<PolicySet> {
        self.current.borrow().clone()
    }

    fn subscribe(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.current.subscribe()
    }

    fn commit(&self, changes: &Changes) -> Result<Outcome, StoreError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_closed() {
            // A failed write may or may not have reached the disk; the disk decides.
            self.current.send_replace(Arc::new(file.load()?));
        }
        let before = self.current();
        let registered = self.registered.as_ref().map(|registered| registered.borrow().clone()).unwrap_or_default();
        let plan = plan(&before, &registered, changes)?;
        if plan.records.is_empty() || changes.is_dry_run {
            return Ok(Outcome { revision: before.revision, ..plan.outcome });
        }
        file.write(&plan)?;
        self.current.send_replace(Arc::new(plan.set));
        Ok(plan.outcome)
    }

    fn history_since(&self, revision: u64) -> Result<Option<Vec<Record>>, StoreError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.history_since(revision, self.current().revision)
    }
}

/// Stored policy and what is registered as one set; where both have an object, somebody wrote the stored one on purpose.
#[must_use]
pub fn unite(policy: &PolicySet, registered: &PolicySet) -> PolicySet {
    let mut united = PolicySet { revision: policy.revision, ..registered.clone() };
    united.objects.extend(policy.objects.iter().map(|(key, object)| (key.clone(), object.clone())));
    united
}
