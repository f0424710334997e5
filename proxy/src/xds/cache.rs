//! Accepted resources: the last good version of each.
//!
//! **Shape.** A [`Shelf`] a type. A response is first read ([`Shelf::read`], which changes nothing), then placed: whole
//! ([`Shelf::replace`], listeners and clusters) or piece by piece ([`Shelf::update`], endpoints and route tables).
//! A resource whose bytes did not change is not read again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::Resource;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message as _, Name as _};

use super::Type;
use crate::convert::{Converted, Rejection};

/// Resources read between two chances for other work of the thread.
const TURN: usize = 128;

/// The accepted resources of one type, by name.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    held: HashMap<String, Held<T>>,
    /// Finds a resource by its bytes, so that what did not change is recognised before it is decoded.
    by_bytes: HashMap<Arc<[u8]>, String>,
}

#[derive(Debug)]
struct Held<T> {
    encoded: Arc<[u8]>,
    value: Arc<T>,
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self { encoded: self.encoded.clone(), value: self.value.clone() }
    }
}

/// A response as read.
#[derive(Debug)]
pub(super) struct Reading<T> {
    accepted: HashMap<String, Held<T>>,
    /// Names of those that were refused.
    refused: HashSet<String>,
    /// Why; empty: all are accepted.
    pub(super) rejections: Vec<Rejection>,
    /// A resource without a readable name is among them: nothing of the response may be placed, or the last good
    /// version of that resource would count as removed.
    pub(super) is_whole_refused: bool,
    /// Paths of ignored fields.
    pub(super) ignored: Vec<String>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { held: HashMap::new(), by_bytes: HashMap::new() }
    }
}

impl<T: PartialEq> Shelf<T> {
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Arc<T>)> {
        self.held.iter().map(|(name, held)| (name.as_str(), &held.value))
    }

    pub(super) fn value(&self, name: &str) -> Option<&Arc<T>> {
        self.held.get(name).map(|held| &held.value)
    }

    /// Reads the resources of a response, the first of each name. `admit` may refuse one by what is held elsewhere.
    ///
    /// Cancel: nothing was changed.
    pub(super) async fn read(
        &self,
        kind: Type,
        resources: Vec<Any>,
        convert: fn(&[u8]) -> Converted<T>,
        mut admit: impl FnMut(&str, &T) -> Result<(), Rejection>,
    ) -> Reading<T> {
        let mut reading = Reading {
            accepted: HashMap::with_capacity(resources.len()),
            refused: HashSet::new(),
            rejections: Vec::new(),
            is_whole_refused: false,
            ignored: Vec::new(),
        };
        for (at, any) in resources.into_iter().enumerate() {
            if at % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
            let any = match unwrapped(kind, any) {
                Ok(any) => any,
                Err(rejection) => {
                    reading.is_whole_refused = true;
                    reading.rejections.push(rejection);
                    continue;
                }
            };
            let (name, held) = match self.read_one(&any.value, convert, &mut reading.ignored) {
                Ok(read) => read,
                Err(rejection) => {
                    reading.is_whole_refused |= rejection.name.is_empty();
                    reading.refused.insert(rejection.name.clone());
                    reading.rejections.push(rejection);
                    continue;
                }
            };
            match reading.accepted.entry(name) {
                Entry::Occupied(first) => {
                    let problem = "is there twice; the first counts";
                    reading.rejections.push(Rejection::new(kind.resource(), first.key(), "", problem));
                }
                Entry::Vacant(free) => match admit(free.key(), &held.value) {
                    Ok(()) => drop(free.insert(held)),
                    Err(rejection) => {
                        reading.refused.insert(free.into_key());
                        reading.rejections.push(rejection);
                    }
                },
            }
        }
        reading
    }

    fn read_one(
        &self,
        encoded: &[u8],
        convert: fn(&[u8]) -> Converted<T>,
        ignored: &mut Vec<String>,
    ) -> Result<(String, Held<T>), Rejection> {
        if let Some((name, held)) = self.by_bytes.get(encoded).and_then(|name| self.held.get_key_value(name)) {
            return Ok((name.clone(), held.clone()));
        }
        let converted = convert(encoded);
        ignored.extend(converted.ignored);
        let value = converted.result?;
        let value = match self.held.get(&converted.name) {
            Some(held) if *held.value == value => held.value.clone(),
            _ => Arc::new(value),
        };
        Ok((converted.name, Held { encoded: encoded.into(), value }))
    }

    /// The response is all there is: what it lacks goes, but the last good version of what was refused stays.
    pub(super) fn replace(&mut self, reading: Reading<T>) {
        if reading.is_whole_refused {
            return;
        }
        let Reading { mut accepted, refused, .. } = reading;
        for name in refused {
            if let Some(held) = self.held.remove(&name) {
                accepted.entry(name).or_insert(held);
            }
        }
        self.by_bytes = accepted.iter().map(|(name, held)| (held.encoded.clone(), name.clone())).collect();
        self.held = accepted;
    }

    /// The response is news of some: what it lacks stays, and what nobody asked for is left out.
    pub(super) fn update(&mut self, reading: Reading<T>, wanted: &BTreeSet<String>) {
        if reading.is_whole_refused {
            return;
        }
        for (name, held) in reading.accepted {
            if wanted.contains(&name) {
                self.by_bytes.insert(held.encoded.clone(), name.clone());
                if let Some(old) = self.held.insert(name.clone(), held)
                    && self.held.get(&name).is_some_and(|new| new.encoded != old.encoded)
                {
                    self.by_bytes.remove(&old.encoded);
                }
            }
        }
    }

    /// Forgets what nobody asks for.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<String>) {
        let by_bytes = &mut self.by_bytes;
        self.held.retain(|name, held| {
            let stays = wanted.contains(name);
            if !stays {
                by_bytes.remove(&held.encoded);
            }
            stays
        });
    }
}

/// The resource itself, which some servers send inside a `Resource`.
fn unwrapped(kind: Type, any: Any) -> Result<Any, Rejection> {
    let refuse = |problem: String| Rejection::new(kind.resource(), "", "", problem);
    let any = if any.type_url == Resource::type_url() {
        let resource = Resource::decode(any.value.as_slice()).map_err(|error| refuse(error.to_string()))?;
        resource.resource.ok_or_else(|| refuse("a Resource without a resource".to_owned()))?
    } else {
        any
    };
    if any.type_url != kind.url() {
        let url: String = any.type_url.chars().take(200).collect();
        return Err(refuse(format!("the response of {} carries a {url:?}", kind.url())));
    }
    Ok(any)
}
