//! Purpose: a change of a pod as a list of steps, the same for a review's answer and for a manifest.
//! Shape: [`Step`] is one operation of a JSON Patch; only `add` and `replace` are needed.
//! Source: RFC 6902 (JSON Patch), RFC 6901 (JSON Pointer).

use serde::Serialize;
use serde_json::Value;
use serde_yaml_ng::{Mapping, Value as Yaml};

/// One operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Sets a field that is absent or null, or inserts into a list.
    Add {
        /// Where.
        path: String,
        /// What.
        value: Content,
    },
    /// Sets a field that is there.
    Replace {
        /// Where.
        path: String,
        /// What.
        value: Content,
    },
}

/// The value of a step.
#[derive(Debug, Clone)]
pub enum Content {
    /// Of this step alone.
    Own(Value),
    /// Of many steps.
    Shared(&'static Shared),
}

/// A value that many containers of a pod get: its text is written once.
#[derive(Debug)]
pub struct Shared {
    value: Value,
    text: String,
}

impl Step {
    pub(super) fn add(path: impl Into<String>, value: Value) -> Self {
        Self::Add { path: path.into(), value: Content::Own(value) }
    }

    pub(super) fn add_shared(path: impl Into<String>, value: &'static Shared) -> Self {
        Self::Add { path: path.into(), value: Content::Shared(value) }
    }

    pub(super) fn replace(path: impl Into<String>, value: Value) -> Self {
        Self::Replace { path: path.into(), value: Content::Own(value) }
    }
}

impl Content {
    fn value(&self) -> &Value {
        match self {
            Self::Own(value) => value,
            Self::Shared(shared) => &shared.value,
        }
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.value() == other.value()
    }
}

impl Shared {
    pub(super) fn new(value: Value) -> Self {
        Self { text: value.to_string(), value }
    }
}

/// Steps as a JSON Patch.
#[must_use]
pub fn to_json(steps: &[Step]) -> Vec<u8> {
    const STEP_BYTES: usize = 128;
    let mut text = Vec::with_capacity(steps.len() * STEP_BYTES);
    let mut opening: &[u8] = b"[";
    for step in steps {
        let (start, path, content): (&[u8], _, _) = match step {
            Step::Add { path, value } => (br#"{"op":"add","path":"#, path, value),
            Step::Replace { path, value } => (br#"{"op":"replace","path":"#, path, value),
        };
        text.extend_from_slice(opening);
        text.extend_from_slice(start);
        write(&mut text, path);
        text.extend_from_slice(br#","value":"#);
        match content {
            Content::Own(value) => write(&mut text, value),
            Content::Shared(shared) => text.extend_from_slice(shared.text.as_bytes()),
        }
        text.push(b'}');
        opening = b",";
    }
    if steps.is_empty() {
        text.extend_from_slice(opening);
    }
    text.push(b']');
    text
}

/// Strings and JSON values only, into memory: it cannot fail.
fn write(text: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(text, value).unwrap_or_default();
}

/// A key as a part of a pointer.
#[must_use]
pub(super) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Applies steps to a manifest, keeping the order of its keys. `None` where a path leads nowhere.
#[must_use]
pub fn apply(mut target: Yaml, steps: &[Step]) -> Option<Yaml> {
    for step in steps {
        let (path, value, is_insert) = match step {
            Step::Add { path, value } => (path, value.value(), true),
            Step::Replace { path, value } => (path, value.value(), false),
        };
        let (parents, last) = path.rsplit_once('/')?;
        let mut at = &mut target;
        for part in parents.split('/').skip(1) {
            at = child(at, &part.replace("~1", "/").replace("~0", "~"))?;
        }
        let last = last.replace("~1", "/").replace("~0", "~");
        match at {
            Yaml::Mapping(map) => drop(map.insert(Yaml::String(last), to_yaml(value))),
            Yaml::Sequence(list) if last == "-" => list.push(to_yaml(value)),
            Yaml::Sequence(list) => {
                let index: usize = last.parse().ok().filter(|index| *index <= list.len())?;
                if is_insert {
                    list.insert(index, to_yaml(value));
                } else {
                    *list.get_mut(index)? = to_yaml(value);
                }
            }
            _ => return None,
        }
    }
    Some(target)
}

fn child<'a>(at: &'a mut Yaml, part: &str) -> Option<&'a mut Yaml> {
    match at {
        Yaml::Mapping(map) => map.get_mut(part),
        Yaml::Sequence(list) => list.get_mut(part.parse::<usize>().ok()?),
        _ => None,
    }
}

/// The same value, with what a reader looks for first in front.
fn to_yaml(value: &Value) -> Yaml {
    match value {
        Value::Null => Yaml::Null,
        Value::Bool(value) => Yaml::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Yaml::Number(number.into()),
            (None, number) => Yaml::Number(number.unwrap_or_default().into()),
        },
        Value::String(text) => Yaml::String(text.clone()),
        Value::Array(items) => Yaml::Sequence(items.iter().map(to_yaml).collect()),
        Value::Object(map) => {
            let first = ["name", "image", "command", "args"];
            let rank = |key: &str| first.iter().position(|word| *word == key).unwrap_or(first.len());
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|(key, _)| rank(key));
            let entries = entries.into_iter().map(|(key, value)| (Yaml::String(key.clone()), to_yaml(value)));
            Yaml::Mapping(entries.collect::<Mapping>())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Yaml {
        serde_yaml_ng::from_str(text).expect("YAML")
    }

    #[test]
    fn steps_are_applied_in_order() {
        let steps = [
            Step::add("/a~1b/0", json!(1)),
            Step::add("/a~1b/-", json!(4)),
            Step::replace("/a~1b/1", json!(2)),
            Step::add("/c", json!({ "x": [], "name": "n" })),
        ];
        let done = apply(read("a/b: [0, 3]\n"), &steps).expect("the paths are there");
        assert_eq!(
            serde_yaml_ng::to_string(&done).expect("YAML"),
            "a/b:\n- 1\n- 2\n- 3\n- 4\nc:\n  name: n\n  x: []\n"
        );
    }

    #[test]
    fn steps_are_written_as_a_json_patch() {
        static SHARED: LazyLock<Shared> = LazyLock::new(|| Shared::new(json!({ "a": "\"" })));
        let steps =
            [Step::add("/a~1b/\"", json!([1])), Step::replace("/c", json!("\n")), Step::add_shared("/d", &SHARED)];
        let wanted = json!([
            { "op": "add", "path": "/a~1b/\"", "value": [1] },
            { "op": "replace", "path": "/c", "value": "\n" },
            { "op": "add", "path": "/d", "value": { "a": "\"" } },
        ]);
        for count in 0..=steps.len() {
            let read: Value = serde_json::from_slice(&to_json(&steps[..count])).expect("JSON");
            assert_eq!(read.as_array().expect("a list"), &wanted.as_array().expect("a list")[..count]);
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_is_no_panic() {
        for path in ["", "/a/0", "/b/x/y", "/a/x/9", "/a/x/-1/0"] {
            assert_eq!(
                apply(read("a: {x: [1]}\nb: 2\n"), &[Step::add(path, json!(1))]).is_some(),
                path == "/a/0",
                "{path}"
            );
        }
    }
}
