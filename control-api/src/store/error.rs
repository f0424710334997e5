//! Purpose: why a change was not stored.

use std::path::PathBuf;

use crate::model::{ObjectKey, Problem};

/// Why a change was not stored. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The changed set would contradict itself.
    #[error("refused: {} problem(s)", .0.len())]
    Contradiction(Vec<Problem>),
    /// The object is not there.
    #[error("{0} does not exist")]
    Missing(ObjectKey),
    /// Somebody else changed it first.
    #[error("{key} is at resourceVersion {found}, not {expected}")]
    Outdated {
        /// Which object.
        key: ObjectKey,
        /// What the writer expected.
        expected: u64,
        /// What is stored; 0 when nothing is.
        found: u64,
    },
    /// Somebody else applied something first.
    #[error("the policy is at revision {found}, not {expected}")]
    RevisionMoved {
        /// What the writer expected.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// Others still refer to it.
    #[error("{key} is in use by {}", names(.by))]
    Referenced {
        /// Which object.
        key: ObjectKey,
        /// Who refers to it.
        by: Vec<ObjectKey>,
    },
    /// The disk is full.
    #[error("the store has no room left: {0}")]
    Full(String),
    /// The store file is used by another process.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// Somebody whose word counts does not allow it.
    #[error("the cluster does not allow it: {0}")]
    Forbidden(String),
    /// Some of several objects were written before one failed.
    #[error("{done} of {all} were written, then {key} failed: {reason}")]
    Partial {
        /// How many were written.
        done: usize,
        /// Of how many.
        all: usize,
        /// Which failed.
        key: ObjectKey,
        /// Why.
        reason: String,
    },
    /// The store could not be reached.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// The store could not be read or written.
    #[error("the store failed: {0}")]
    Failed(String),
    /// A stored object does not parse, which only a newer or damaged store explains.
    #[error("stored object {key} cannot be read: {reason}")]
    Unreadable {
        /// Its key in the store.
        key: String,
        /// Why.
        reason: String,
    },
}

fn names(keys: &[ObjectKey]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
