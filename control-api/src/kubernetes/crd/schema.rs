//! Purpose: the parts from which a CRD's structural schema is put together.
//! Shape: a [`Schema`] is one JSON schema under construction; each builder takes the words a user reads first. What JSON
//! schema cannot say becomes a CEL rule (`x-kubernetes-validations`) with its message.
//! Limits: every string and list has a greatest length, or the API server could not bound what a CEL rule costs.
//! Source: Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions"; durations as GEP-2257.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// Four parts of five digits and two letters.
const DURATION_CHARS_MAX: usize = 28;

/// One DNS label.
pub(super) const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Several DNS labels, each of at most 63 characters.
pub(super) const SUBDOMAIN_PATTERN: &str =
    "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";

/// A JSON schema under construction.
#[derive(Debug, Clone)]
pub(super) struct Schema(Map<String, Value>);

/// A field of an object.
#[derive(Debug)]
pub(super) struct Field {
    name: &'static str,
    schema: Schema,
    is_required: bool,
}

/// A field that must be there.
pub(super) fn required(name: &'static str, schema: Schema) -> Field {
    Field { name, schema, is_required: true }
}

/// A field that may be absent.
pub(super) fn optional(name: &'static str, schema: Schema) -> Field {
    Field { name, schema, is_required: false }
}

impl Schema {
    fn of(kind: &str, doc: &str) -> Self {
        Self(Map::new()).with("type", kind).with("description", doc)
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// A string of at most so many characters.
    pub(super) fn text(doc: &str, chars_max: usize) -> Self {
        Self::of("string", doc).with("minLength", 1).with("maxLength", chars_max)
    }

    /// One DNS label.
    pub(super) fn label(doc: &str) -> Self {
        Self::text(doc, 63).pattern(LABEL_PATTERN)
    }

    /// A DNS subdomain.
    pub(super) fn subdomain(doc: &str) -> Self {
        Self::text(doc, 253).pattern(SUBDOMAIN_PATTERN)
    }

    /// One of some words.
    pub(super) fn choice(doc: &str, words: &[&str]) -> Self {
        Self::of("string", doc).with("enum", words.to_vec())
    }

    /// A whole number.
    pub(super) fn integer(doc: &str, range: RangeInclusive<u32>) -> Self {
        let schema = Self::of("integer", doc).with("format", "int64");
        schema.with("minimum", *range.start()).with("maximum", *range.end())
    }

    /// A count of any size.
    pub(super) fn count(doc: &str) -> Self {
        Self::integer(doc, 0..=u32::MAX)
    }

    /// A number that only we write.
    pub(super) fn number(doc: &str) -> Self {
        Self::of("integer", doc).with("format", "int64").with("minimum", 0)
    }

    /// A point in time.
    pub(super) fn moment(doc: &str) -> Self {
        Self::of("string", doc).with("format", "date-time")
    }

    /// A percentage.
    pub(super) fn percent(doc: &str) -> Self {
        Self::integer(doc, 0..=100)
    }

    /// True or false.
    pub(super) fn boolean(doc: &str) -> Self {
        Self::of("boolean", doc)
    }

    /// A span in a range, such as `1ms` to `24h`.
    pub(super) fn span(doc: &str, range: (&str, &str)) -> Self {
        let (least, most) = range;
        let rule = format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')");
        let schema =
            Self::text(&format!("{doc} A span such as 250ms, 1s, 1m30s; {least} to {most}."), DURATION_CHARS_MAX);
        schema.pattern(DURATION_PATTERN).rule(&rule, &format!("must be in {least}..={most}"))
    }

    /// A list of `items`.
    pub(super) fn list(doc: &str, items: Self, length: RangeInclusive<usize>) -> Self {
        let schema = Self::of("array", doc).with("items", Value::Object(items.0)).with("maxItems", *length.end());
        let schema = if *length.start() > 0 { schema.with("minItems", *length.start()) } else { schema };
        schema.with("x-kubernetes-list-type", "atomic")
    }

    /// An object of any keys, at most so many.
    pub(super) fn map(doc: &str, values: Self, most: usize) -> Self {
        Self::of("object", doc).with("additionalProperties", Value::Object(values.0)).with("maxProperties", most)
    }

    /// A string may have no character.
    pub(super) fn may_be_empty(self) -> Self {
        self.with("minLength", 0)
    }

    /// An object with `fields`.
    pub(super) fn object(doc: &str, fields: Vec<Field>) -> Self {
        let needed: Vec<&str> = fields.iter().filter(|field| field.is_required).map(|field| field.name).collect();
        let properties: Map<String, Value> =
            fields.iter().map(|field| (field.name.to_owned(), Value::Object(field.schema.0.clone()))).collect();
        let schema = Self::of("object", doc).with("properties", properties);
        if needed.is_empty() { schema } else { schema.with("required", needed) }
    }

    /// What a string must look like.
    pub(super) fn pattern(self, pattern: &str) -> Self {
        self.with("pattern", pattern)
    }

    /// What the API server writes where nothing was written.
    pub(super) fn default(self, value: impl Into<Value>) -> Self {
        self.with("default", value)
    }

    /// No item twice.
    pub(super) fn unique(self) -> Self {
        self.with("x-kubernetes-list-type", "set")
    }

    /// No two items with the same value of `key`; items of different writers are merged.
    pub(super) fn keyed(self, key: &str) -> Self {
        self.with("x-kubernetes-list-type", "map").with("x-kubernetes-list-map-keys", vec![key])
    }

    /// A rule in CEL, and what is said where it does not hold.
    pub(super) fn rule(mut self, rule: &str, message: &str) -> Self {
        let rules = self.0.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
        if let Value::Array(rules) = rules {
            rules.push(json!({ "rule": rule, "message": message }));
        }
        self
    }

    /// As JSON.
    pub(super) fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

/// Fields that may be absent, in one line each.
pub(super) fn optionals(fields: Vec<(&'static str, Schema)>) -> Vec<Field> {
    fields.into_iter().map(|(name, schema)| optional(name, schema)).collect()
}
