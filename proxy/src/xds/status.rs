//! What others may see of the configuration's arrival.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Type;
use crate::observe;

/// Different ignored fields counted.
const IGNORED_KEPT: usize = 1024;

/// How the configuration stands: written by the client on the control thread, read by whoever answers the admin port.
#[derive(Debug, Default)]
pub struct XdsStatus {
    is_ready: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) server: Option<String>,
    pub(super) is_connected: bool,
    pub(super) connects: u64,
    pub(super) last_heard: Option<Instant>,
    pub(super) last_error: Option<String>,
    /// In the order of [`Type::ALL`].
    pub(super) types: [TypeRecord; 4],
    ignored: BTreeMap<String, u64>,
    /// What the next epoch waits for.
    pub(super) waiting: Vec<String>,
    /// What is missing and no longer waited for.
    pub(super) missing: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct TypeRecord {
    pub(super) version: String,
    pub(super) held: u64,
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    pub(super) last_rejection: Option<String>,
}

impl XdsStatus {
    /// True once everything accepted ran with no listener or cluster lacking a part.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// What [`XdsStatus::is_ready`] waits for; empty once it is true.
    pub fn waiting(&self) -> Vec<String> {
        if self.is_ready() {
            return Vec::new();
        }
        let record = self.lock();
        let mut waiting: Vec<String> = record.waiting.iter().chain(&record.missing).cloned().collect();
        if waiting.is_empty() {
            waiting.push("the first snapshot".to_owned());
        }
        waiting
    }

    /// A copy of everything, as the admin port shows it.
    pub fn view(&self) -> observe::XdsStatus {
        let record = self.lock();
        let missing = record.missing.iter().map(|name| format!("{name} (did not come in time)"));
        let types = Type::ALL.iter().zip(&record.types).map(|(kind, seen)| observe::XdsType {
            name: kind.url().rsplit('.').next().unwrap_or_default().to_owned(),
            version: seen.version.clone(),
            resources: seen.held,
            accepted: seen.accepted,
            rejected: seen.rejected,
            last_rejection: seen.last_rejection.clone(),
        });
        observe::XdsStatus {
            configured: record.server.is_some(),
            server: record.server.clone().unwrap_or_default(),
            connected: record.is_connected,
            connects: record.connects,
            last_heard: record.last_heard.map(|at| at.elapsed()),
            last_error: record.last_error.clone(),
            types: types.collect(),
            warming: record.waiting.iter().cloned().chain(missing).collect(),
            ignored_fields: record.ignored.iter().map(|(path, count)| (path.clone(), *count)).collect(),
        }
    }

    pub(super) fn edit(&self, edit: impl FnOnce(&mut Record)) {
        edit(&mut self.lock());
    }

    pub(super) fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    /// Counts fields that were set and not used.
    pub(super) fn count_ignored(&self, paths: Vec<String>) {
        let mut record = self.lock();
        for path in paths {
            let has_room = record.ignored.len() < IGNORED_KEPT;
            match record.ignored.get_mut(&path) {
                Some(count) => *count += 1,
                None if has_room => drop(record.ignored.insert(path, 1)),
                None => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // A poisoned lock means that a reader panicked while it looked; the record itself is sound.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
