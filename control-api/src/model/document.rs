//! Purpose: text to untyped values, one per object, without losing what the typed step must see.
//! Shape: a YAML stream (`---`), a JSON value, a list of objects, or a `kind: List`; each object
//! becomes one numbered [`Document`].
//! Errors: a repeated key, a key that is not a string and a tag are refused here, because a plain
//! JSON value cannot carry them.
//! Limits: at most 10,000 objects; nesting as the YAML and JSON readers bound it (128).

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::problem::Problem;

const DOCUMENTS_MAX: usize = 10_000;

/// How the text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// One JSON value.
    Json,
    /// A stream of YAML documents.
    Yaml,
}

/// One object of the input.
#[derive(Debug)]
pub struct Document {
    /// Its place in the input, from 1.
    pub index: usize,
    /// The object, untyped.
    pub value: Value,
}

/// Splits `text` into its objects; what could not be read comes back as problems.
#[must_use]
pub fn split_documents(text: &str, syntax: Syntax) -> (Vec<Document>, Vec<Problem>) {
    let mut split = Split::default();
    match syntax {
        Syntax::Json => {
            let mut reader = serde_json::Deserializer::from_str(text);
            let read = read_strict(&mut reader);
            match read.and_then(|value| reader.end().map(|()| value).map_err(|e| (String::new(), e.to_string()))) {
                Ok(value) => split.add(value),
                Err(problem) => split.refuse(problem),
            }
        }
        Syntax::Yaml => {
            for document in serde_yaml_ng::Deserializer::from_str(text) {
                match read_strict(document) {
                    Ok(Value::Null) => {}
                    Ok(value) => split.add(value),
                    // After a syntax error the reader repeats itself without end.
                    Err(problem) if split.is_repeated(&problem) => break,
                    Err(problem) => split.refuse(problem),
                }
                if split.next > DOCUMENTS_MAX || split.problems.len() > 100 {
                    break;
                }
            }
        }
    }
    if split.documents.is_empty() && split.problems.is_empty() {
        split.refuse((String::new(), "the input holds no object".to_owned()));
    }
    (split.documents, split.problems)
}

#[derive(Default)]
struct Split {
    next: usize,
    documents: Vec<Document>,
    problems: Vec<Problem>,
}

impl Split {
    fn add(&mut self, value: Value) {
        match value {
            Value::Array(items) => items.into_iter().for_each(|item| self.add_one(item)),
            Value::Object(mut map) if map.get("kind").and_then(Value::as_str) == Some("List") => {
                match map.remove("items") {
                    Some(Value::Array(items)) => {
                        items.into_iter().for_each(|item| self.add_one(item));
                    }
                    _ => self.refuse(("items".to_owned(), "a List must have items".to_owned())),
                }
            }
            other => self.add_one(other),
        }
    }

    fn add_one(&mut self, value: Value) {
        self.next += 1;
        if self.next == DOCUMENTS_MAX + 1 {
            let message = format!("more than {DOCUMENTS_MAX} objects in one request");
            self.problems.push(Problem {
                message,
                remedy: Some("apply them in parts".to_owned()),
                ..Problem::default()
            });
        }
        if self.next <= DOCUMENTS_MAX {
            self.documents.push(Document { index: self.next, value });
        }
    }

    fn is_repeated(&self, (path, message): &(String, String)) -> bool {
        self.problems.last().is_some_and(|last| last.path == *path && last.message == *message)
    }

    fn refuse(&mut self, (path, message): (String, String)) {
        self.next += 1;
        self.problems.push(Problem { document: Some(self.next), path, message, ..Problem::default() });
    }
}

fn read_strict<'de, D>(reader: D) -> Result<Value, (String, String)>
where
    D: de::Deserializer<'de>,
    D::Error: fmt::Display,
{
    match serde_path_to_error::deserialize::<_, Strict>(reader) {
        Ok(Strict(value)) => Ok(value),
        Err(error) => {
            let path = error.path().to_string();
            let path = path.trim_end_matches(['.', '?']).to_owned();
            let message = error.into_inner().to_string();
            // The YAML reader names the path too.
            let message = message.strip_prefix(&format!("{path}: ")).unwrap_or(&message).to_owned();
            Err((path, message))
        }
    }
}

/// A JSON value read without the usual leniency.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: de::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value that JSON can carry")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    /// JSON has no NaN. A value that fits no field stands in for it, so that the typed step refuses
    /// it with its path and range, next to the other problems of the document.
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        let stand_in = || Value::Array(vec![Value::String(format!("not finite: {value}"))]);
        Ok(Number::from_f64(value).map_or_else(stand_in, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: de::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("the key {key:?} is repeated")));
            }
            let Strict(value) = entries.next_value()?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _tagged: A) -> Result<Value, A::Error> {
        Err(de::Error::custom("YAML tags are not accepted"))
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<String, D::Error> {
        String::deserialize(reader)
    }
}
