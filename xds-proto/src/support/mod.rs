//! Which fields of Envoy's messages are served, refused or ignored.
//!
//! **Purpose.** No field that a control plane sets is dropped unseen: one table says for each what becomes of it, and
//! [`walk`] finds every set field that is not served, by its path.
//! **Shape.** [`TABLE`] holds a [`Row`] per message, a [`Rule`] per field and one for the fields a row does not list.
//! A message is walked as far as its fields are served, into `Any` too. To serve a field, change its rule.
//! **Errors.** A [`Finding`] has the path, the field's full name and, where it is refused, the reason.
//! **Limits.** [`MAX_FINDINGS`] of each verdict; decoding is bounded by [`crate::bounds`].
//! **Source.** Envoy v3 API. Refused is what would weaken security or change where traffic goes: unknown enum values, unknown
//! conditions, filters that are not optional. A field number that no descriptor has follows its row's rule for the rest.
//! **Tests.** Below: the table is sorted, unique and complete against the descriptors; and the walk.

mod table;

use std::collections::HashMap;

use prost::Name;

use crate::any::{self, UnpackError};
use crate::bounds::MAX_ANY_DEPTH;
use crate::descriptor;
use crate::document::shorten;
use crate::envoy::google::protobuf::Any;
use crate::reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, Value};

pub use table::{IDLE_TYPES, TABLE};

/// Most findings of each verdict that one walk reports.
pub const MAX_FINDINGS: usize = 1_000;

/// The rules of one message.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its full name.
    pub message: &'static str,
    /// The rule of the fields not listed, and of field numbers without a name.
    pub rest: Rule,
    /// Field name and rule, sorted.
    pub fields: &'static [(&'static str, Rule)],
}

/// What becomes of a field that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// An `Any` that may carry these types; another one is refused, unless its place is optional.
    Carry(&'static [&'static str]),
    /// An `Any` that may carry these types; another one is ignored.
    CarryOrIgnore(&'static [&'static str]),
    /// Not read, and counted.
    Ignore,
    /// Served for these values, named as in JSON; else refused.
    Only(&'static [&'static str]),
    /// Refused, with the reason.
    Refuse(&'static str),
    /// Read; a message is walked further.
    Serve,
}

/// What a finding means for its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The field is counted and has no effect.
    Ignore,
    /// The resource is refused.
    Refuse,
}

/// A field that is set and not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where: `filter_chains[0].filters[0].typed_config.tracing`.
    pub path: String,
    /// The field by its full name, for counting: `envoy.config.listener.v3.Listener.access_log`.
    pub field: String,
    /// What it means.
    pub verdict: Verdict,
    /// Why, and what would be right.
    pub reason: String,
}

/// The rule of a field by name; none when the table has no row for the message.
pub fn rule(message: &str, field: &str) -> Option<Rule> {
    let row = row(message)?;
    Some(match row.fields.binary_search_by(|(name, _)| (*name).cmp(field)) {
        Ok(index) => row.fields[index].1,
        Err(_) => row.rest,
    })
}

/// Finds what of `message` is set and not served. `at` is the path of the message itself, empty for a resource.
pub fn walk(message: &DynamicMessage, at: &str) -> Vec<Finding> {
    let mut walker = Walker { path: at.to_owned(), ..Walker::default() };
    walker.message(message);
    walker.findings
}

/// As [`walk`], on an encoded message. Unlike the generated types, the bytes still have the fields a newer sender knows.
pub fn walk_bytes(type_name: &str, bytes: &[u8], at: &str) -> Result<Vec<Finding>, UnpackError> {
    let descriptor =
        descriptor::message(type_name).ok_or_else(|| UnpackError::UnknownType { type_name: shorten(type_name) })?;
    Ok(walk(&any::decode_dynamic(&descriptor, bytes)?, at))
}

/// As [`walk`], on a generated type.
pub fn walk_message<T: Name>(message: &T, at: &str) -> Result<Vec<Finding>, UnpackError> {
    walk_bytes(&T::full_name(), &message.encode_to_vec(), at)
}

fn row(message: &str) -> Option<&'static Row> {
    TABLE.binary_search_by(|row| row.message.cmp(message)).ok().map(|index| &TABLE[index])
}

/// Messages that say of their content that it may be skipped.
const OPTIONAL: [&str; 2] =
    ["envoy.config.route.v3.FilterConfig", "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter"];

#[derive(Default)]
struct Walker {
    path: String,
    findings: Vec<Finding>,
    ignored: usize,
    refused: usize,
    any_depth: usize,
}

impl Walker {
    fn message(&mut self, message: &DynamicMessage) {
        let descriptor = message.descriptor();
        let Some(row) = row(descriptor.full_name()) else {
            if !descriptor.full_name().starts_with("google.protobuf.") {
                let reason = format!("{} is not served", descriptor.full_name());
                self.find(descriptor.full_name().to_owned(), Verdict::Ignore, reason);
            }
            return;
        };
        let is_optional =
            OPTIONAL.contains(&row.message) && (is_set(message, "is_optional") || is_set(message, "disabled"));
        for (field, value) in message.fields() {
            let rule = match row.fields.binary_search_by(|(name, _)| (*name).cmp(field.name())) {
                Ok(index) => row.fields[index].1,
                Err(_) => row.rest,
            };
            self.at(&format!("{}{}", self.dot(), field.name()), |walker| {
                walker.field(&field, value, rule, is_optional)
            });
        }
        for number in message.unknown_fields() {
            self.at(&format!("{}#{number}", self.dot()), |walker| {
                let field = format!("{}.#{number}", row.message);
                match row.rest {
                    Rule::Ignore | Rule::CarryOrIgnore(_) => {
                        walker.find(field, Verdict::Ignore, "a field of a newer API".into());
                    }
                    _ => walker.find(field, Verdict::Refuse, "a field of a newer API; remove it".into()),
                }
            });
        }
    }

    fn field(&mut self, field: &FieldDescriptor, value: &Value, rule: Rule, is_optional: bool) {
        match rule {
            Rule::Ignore => self.find(field.full_name(), Verdict::Ignore, "has no effect here".into()),
            Rule::Refuse(reason) => self.find(field.full_name(), Verdict::Refuse, reason.to_owned()),
            Rule::Carry(_) | Rule::CarryOrIgnore(_) | Rule::Only(_) | Rule::Serve => {
                self.each(field, value, &|walker, kind, value| match rule {
                    Rule::Carry(types) => {
                        let verdict = if is_optional { Verdict::Ignore } else { Verdict::Refuse };
                        walker.carried(field, value, types, verdict);
                    }
                    Rule::CarryOrIgnore(types) => walker.carried(field, value, types, Verdict::Ignore),
                    Rule::Only(allowed) => walker.only(field, kind, value, allowed),
                    _ => walker.served(field, kind, value),
                });
            }
        }
    }

    /// Runs `step` on the value, or on each item of a list or map.
    fn each(&mut self, field: &FieldDescriptor, value: &Value, step: &dyn Fn(&mut Self, &Kind, &Value)) {
        match value {
            Value::List(items) => {
                let kind = field.kind();
                for (index, item) in items.iter().enumerate() {
                    self.at(&format!("[{index}]"), |walker| step(walker, &kind, item));
                }
            }
            Value::Map(entries) => {
                let Kind::Message(entry) = field.kind() else { return };
                let kind = entry.map_entry_value_field().kind();
                for (key, item) in sorted(entries) {
                    self.at(&format!("[{key}]"), |walker| step(walker, &kind, item));
                }
            }
            value => step(self, &field.kind(), value),
        }
    }

    fn served(&mut self, field: &FieldDescriptor, kind: &Kind, value: &Value) {
        match (kind, value) {
            (_, Value::Message(message)) => self.message(message),
            (Kind::Enum(values), Value::EnumNumber(number)) if values.get_value(*number).is_none() => {
                let reason = format!("{number} is not one of {}", names(values).join(", "));
                self.find(field.full_name(), Verdict::Refuse, reason);
            }
            _ => {}
        }
    }

    fn only(&mut self, field: &FieldDescriptor, kind: &Kind, value: &Value, allowed: &[&str]) {
        let found = match (kind, value) {
            (Kind::Enum(values), Value::EnumNumber(number)) => {
                values.get_value(*number).map_or_else(|| number.to_string(), |value| value.name().to_owned())
            }
            (_, Value::Bool(value)) => value.to_string(),
            // A BoolValue: false when its field is not set.
            (_, Value::Message(message)) => {
                message.get_field_by_number(1).and_then(|value| value.as_bool()).unwrap_or_default().to_string()
            }
            _ => String::new(),
        };
        if !allowed.contains(&found.as_str()) {
            let reason = format!("{found} is not served; use {}", allowed.join(" or "));
            self.find(field.full_name(), Verdict::Refuse, reason);
        }
    }

    /// An `Any`: walks a type that may be here, and finds any other.
    fn carried(&mut self, field: &FieldDescriptor, value: &Value, types: &[&str], otherwise: Verdict) {
        let Some(any) = value.as_message().and_then(|message| message.transcode_to::<Any>().ok()) else { return };
        let name = field.full_name();
        let content = match any::content_type(&any) {
            Ok(content) => content,
            Err(error) => return self.find(name, otherwise, error.to_string()),
        };
        if IDLE_TYPES.binary_search(&content.as_str()).is_ok() {
            return self.find(name, Verdict::Ignore, format!("{content} has no effect here"));
        }
        if !types.contains(&content.as_str()) {
            let advice =
                if OPTIONAL.contains(&field.parent_message().full_name()) { " or set is_optional" } else { "" };
            let reason = format!("{} is not served; remove it{advice}", shorten(&content));
            return self.find(name, otherwise, reason);
        }
        if self.any_depth == MAX_ANY_DEPTH {
            return self.find(name, Verdict::Refuse, format!("Any nests more than {MAX_ANY_DEPTH} deep"));
        }
        match any::unpack_dynamic(&any) {
            Ok(message) => {
                self.any_depth += 1;
                self.message(&message);
                self.any_depth -= 1;
            }
            Err(error) => self.find(name, Verdict::Refuse, error.to_string()),
        }
    }

    fn find(&mut self, field: String, verdict: Verdict, reason: String) {
        let count = match verdict {
            Verdict::Ignore => &mut self.ignored,
            Verdict::Refuse => &mut self.refused,
        };
        *count += 1;
        if *count <= MAX_FINDINGS {
            self.findings.push(Finding { path: self.path.clone(), field, verdict, reason });
        }
    }

    fn dot(&self) -> &'static str {
        if self.path.is_empty() { "" } else { "." }
    }

    fn at(&mut self, part: &str, step: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(part);
        step(self);
        self.path.truncate(length);
    }
}

fn is_set(message: &DynamicMessage, field: &str) -> bool {
    message.get_field_by_name(field).is_some_and(|value| value.as_bool() == Some(true))
}

fn names(values: &EnumDescriptor) -> Vec<String> {
    values.values().map(|value| value.name().to_owned()).collect()
}

/// The entries of a map in the order of their keys, so that findings come in the same order every time.
fn sorted(entries: &HashMap<MapKey, Value>) -> Vec<(String, &Value)> {
    let mut sorted: Vec<_> = entries
        .iter()
        .map(|(key, value)| match key {
            MapKey::String(key) => (format!("{:?}", shorten(key)), value),
            key => (format!("{key:?}"), value),
        })
        .collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted
}

#[cfg(test)]
mod tests;
