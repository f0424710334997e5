//! Purpose: decide what an apply or delete would do, without touching the disk.
//! Shape: [`Changes`] in, a plan (new set, records to write, answer) out; pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::StoreError;
use crate::model::link::{Touched, find_contradictions, referrers};
use crate::model::{Manifest, Object, ObjectKey, PolicySet};

/// One step of a request.
#[derive(Debug, Clone)]
pub enum Write {
    /// Take away.
    Delete {
        /// Which object.
        key: ObjectKey,
        /// The version the writer saw, if it insists.
        expected: Option<u64>,
    },
    /// Create or replace.
    Put(Box<Manifest>),
}

/// A whole request: all of it or nothing.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The steps.
    pub writes: Vec<Write>,
    /// Only say what would happen.
    pub is_dry_run: bool,
    /// Delete even what others refer to.
    pub is_forced: bool,
    /// The revision the writer saw, if it insists on it.
    pub expected_revision: Option<u64>,
}

/// What happened to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Created,
    /// It was replaced.
    Configured,
    /// It was taken away.
    Deleted,
    /// It was already so.
    Unchanged,
}

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The revision at which all of it holds.
    pub revision: u64,
    /// Per object, in the order given.
    pub changes: Vec<(ObjectKey, Change)>,
}

/// One change as kept for watchers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its revision.
    pub revision: u64,
    /// What happened.
    pub change: Change,
    /// The object after it, or before a delete.
    pub object: Value,
}

/// What a commit writes and then publishes.
#[derive(Debug)]
pub struct Plan {
    /// The set afterwards.
    pub set: PolicySet,
    /// The changes, to be written.
    pub records: Vec<(ObjectKey, Record)>,
    /// The answer.
    pub outcome: Outcome,
}

/// Decides what `changes` do to `before`, whose objects may refer to `registered` ones.
pub fn plan(before: &PolicySet, registered: &PolicySet, changes: &Changes) -> Result<Plan, StoreError> {
    if let Some(expected) = changes.expected_revision
        && expected != before.revision
    {
        return Err(StoreError::RevisionMoved { expected, found: before.revision });
    }
    let revision = before.revision + 1;
    let mut set = before.clone();
    let mut touched = Touched::new();
    let mut answers = Vec::new();
    let mut records = Vec::new();
    for write in &changes.writes {
        let (key, change, record) = match write {
            Write::Put(manifest) => {
                touched.insert(manifest.key.clone(), manifest.document);
                put(&mut set, manifest, revision)?
            }
            Write::Delete { key, expected } => delete(&mut set, key, *expected, revision)?,
        };
        if let Some(record) = record {
            records.push((key.clone(), record));
        }
        answers.push((key, change));
    }
    let problems = find_contradictions(&super::unite(&set, registered), &touched);
    if !problems.is_empty() {
        return Err(StoreError::Contradiction(problems));
    }
    if !changes.is_forced {
        for (key, _) in answers.iter().filter(|(_, change)| *change == Change::Deleted) {
            let by = referrers(before, &set, key);
            if !by.is_empty() {
                return Err(StoreError::Referenced { key: key.clone(), by });
            }
        }
    }
    set.revision = if records.is_empty() { before.revision } else { revision };
    let outcome = Outcome { revision: set.revision, changes: answers };
    Ok(Plan { set, records, outcome })
}

type Step = (ObjectKey, Change, Option<Record>);

fn put(set: &mut PolicySet, manifest: &Manifest, revision: u64) -> Result<Step, StoreError> {
    let key = manifest.key.clone();
    let stored = set.objects.get(&key);
    let found = stored.map_or(0, |object| object.changed);
    if let Some(expected) = manifest.expected
        && expected != found
    {
        return Err(StoreError::Outdated { key, expected, found });
    }
    if stored.is_some_and(|object| object.body == manifest.body) {
        return Ok((key, Change::Unchanged, None));
    }
    let object = Object {
        key: key.clone(),
        spec: manifest.spec.clone(),
        body: manifest.body.clone(),
        created: stored.map_or(revision, |object| object.created),
        changed: revision,
        generation: stored.map_or(1, |object| object.generation + 1),
    };
    let change = if stored.is_some() { Change::Configured } else { Change::Created };
    let record = Record { revision, change, object: object.to_json() };
    set.objects.insert(key.clone(), Arc::new(object));
    Ok((key, change, Some(record)))
}

fn delete(set: &mut PolicySet, key: &ObjectKey, expected: Option<u64>, revision: u64) -> Result<Step, StoreError> {
    let Some(object) = set.objects.remove(key) else {
        return Err(StoreError::Missing(key.clone()));
    };
    if let Some(expected) = expected
        && expected != object.changed
    {
        let found = object.changed;
        return Err(StoreError::Outdated { key: key.clone(), expected, found });
    }
    let record = Record { revision, change: Change::Deleted, object: object.to_json() };
    Ok((key.clone(), Change::Deleted, Some(record)))
}

/// The stored form of an object.
#[must_use]
pub(super) fn to_row(object: &Object) -> Value {
    json!({
        "body": object.body,
        "created": object.created,
        "changed": object.changed,
        "generation": object.generation,
    })
}

/// Reads the stored form back; the body goes through the same parser as an apply.
pub(super) fn parse_row(row: &Value) -> Result<Object, String> {
    let number = |name: &str| row.get(name).and_then(Value::as_u64).ok_or(format!("no {name}"));
    let body = row.get("body").ok_or("no body")?;
    let manifest = crate::model::object::parse_manifest(body, None)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    Ok(Object {
        key: manifest.key,
        spec: manifest.spec,
        body: manifest.body,
        created: number("created")?,
        changed: number("changed")?,
        generation: number("generation")?,
    })
}

/// Objects by key.
pub type Objects = BTreeMap<ObjectKey, Arc<Object>>;
