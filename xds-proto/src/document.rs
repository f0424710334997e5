//! A YAML or JSON document as an untyped tree.
//!
//! **Purpose.** Read text into one shape for both languages, with what neither parser enforces: no key twice in
//! one mapping, bounded size, depth and number of nodes.
//! **Shape.** [`Node`], owned; mappings keep the order of the text.
//! **Errors.** [`SyntaxError`] with line and column.
//! **Limits.** [`MAX_TEXT_BYTES`], [`MAX_DEPTH`], [`MAX_NODES`]. Every use of a YAML anchor counts its nodes again, so
//! anchors that multiply ("billion laughs") end at the node limit.
//! **Source.** YAML 1.2 core schema: `yes`, `on` and `0777` are text. A key tagged `!ignore` is skipped with its
//! value, as in Envoy; a merge key (`<<`) is refused, where Envoy takes it for a field name.
//! **Tests.** Below; random text in `tests/robust.rs`.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Longest document, in bytes.
pub const MAX_TEXT_BYTES: usize = 64 << 20;
/// Deepest nesting of lists and mappings.
pub const MAX_DEPTH: u32 = 100;
/// Most scalars, lists and mappings, anchors expanded.
pub const MAX_NODES: u64 = 4_000_000;

/// One value of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Nothing: `null`, `~` or an empty value.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without a fraction, at most 64 bits and a sign.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text, keys unique.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What the value is, for a message: `a list`, `text "5s"`.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".into(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(text) => format!("text {:?}", shorten(text)),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a mapping".into(),
        }
    }
}

/// At most 160 characters of `text`, enough for a type URL, for a message.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 160;
    let mut short: String = text.chars().take(MOST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// Text that is not a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SyntaxError {
    /// Line and column, both from 1, where the parser knows them.
    pub at: Option<(usize, usize)>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some((line, column)) => write!(f, "line {line}, column {column}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// Reads YAML. JSON is YAML too, but [`parse_json`] gives better messages and is faster.
pub fn parse_yaml(text: &str) -> Result<Node, SyntaxError> {
    let budget = Budget::for_text(text)?;
    NodeSeed { budget: &budget, depth: 0 }.deserialize(serde_yaml_ng::Deserializer::from_str(text)).map_err(|error| {
        let at = error.location().map(|location| (location.line(), location.column()));
        SyntaxError { at, reason: strip_location(&error.to_string()) }
    })
}

/// Reads JSON.
pub fn parse_json(text: &str) -> Result<Node, SyntaxError> {
    let budget = Budget::for_text(text)?;
    let mut parser = serde_json::Deserializer::from_str(text);
    NodeSeed { budget: &budget, depth: 0 }
        .deserialize(&mut parser)
        .and_then(|node| parser.end().map(|()| node))
        .map_err(|error| SyntaxError {
            at: Some((error.line(), error.column())),
            reason: strip_location(&error.to_string()),
        })
}

/// Reads a JSON value that is already parsed; duplicate keys are lost by then.
pub fn parse_value(value: &serde_json::Value) -> Result<Node, SyntaxError> {
    let budget = Budget { nodes: Cell::new(MAX_NODES) };
    NodeSeed { budget: &budget, depth: 0 }
        .deserialize(value)
        .map_err(|error| SyntaxError { at: None, reason: error.to_string() })
}

/// The parsers append the place to the message; it is carried apart here.
fn strip_location(message: &str) -> String {
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message.to_owned(),
    }
}

/// What is left of the limits.
struct Budget {
    nodes: Cell<u64>,
}

impl Budget {
    fn for_text(text: &str) -> Result<Self, SyntaxError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(SyntaxError {
                at: None,
                reason: format!("the document has {} bytes; at most {MAX_TEXT_BYTES} are read", text.len()),
            });
        }
        Ok(Self { nodes: Cell::new(MAX_NODES) })
    }

    fn spend<E: serde::de::Error>(&self) -> Result<(), E> {
        let left = self
            .nodes
            .get()
            .checked_sub(1)
            .ok_or_else(|| E::custom(format_args!("more than {MAX_NODES} values, repeated anchors included")))?;
        self.nodes.set(left);
        Ok(())
    }
}

/// Reads one value `depth` levels below the root.
#[derive(Clone, Copy)]
struct NodeSeed<'a> {
    budget: &'a Budget,
    depth: u32,
}

impl NodeSeed<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested more than {MAX_DEPTH} deep")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.budget.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    /// What the YAML parser makes of an empty document.
    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let seed = self.deeper()?;
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(seed)? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let seed = self.deeper()?;
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key_seed(KeySeed(self.budget))? {
            let Some(key) = key else {
                map.next_value_seed(seed)?;
                continue;
            };
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("key {:?} stands twice in one mapping", shorten(&key))));
            }
            entries.push((key, map.next_value_seed(seed)?));
        }
        Ok(Node::Map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (tag, _) = tagged.variant::<String>()?;
        Err(A::Error::custom(format_args!("tag !{} is not known; remove it", shorten(&tag))))
    }
}

/// Reads a key; none for one that is tagged `!ignore`.
struct KeySeed<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.spend()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bool<E>(self, key: bool) -> Result<Self::Value, E> {
        Ok(Some(key.to_string()))
    }

    fn visit_i64<E>(self, key: i64) -> Result<Self::Value, E> {
        Ok(Some(key.to_string()))
    }

    fn visit_u64<E>(self, key: u64) -> Result<Self::Value, E> {
        Ok(Some(key.to_string()))
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Self::Value, E> {
        if key == "<<" {
            return Err(E::custom("merge keys (<<) are not part of YAML 1.2; write the fields out"));
        }
        Ok(Some(key.to_owned()))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Self::Value, A::Error> {
        let (tag, content) = tagged.variant::<String>()?;
        if tag != "ignore" {
            return Err(A::Error::custom(format_args!("tag !{} is not known; remove it", shorten(&tag))));
        }
        content.newtype_variant::<serde::de::IgnoredAny>()?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_follow_the_core_schema() {
        let node = parse_yaml("[1, -2, 1.5, true, ~, yes, 5s, 127.0.0.1, '7', .nan]").unwrap();
        let Node::List(items) = node else { panic!("{node:?}") };
        assert_eq!(
            items[..9],
            [
                Node::Int(1),
                Node::Int(-2),
                Node::Float(1.5),
                Node::Bool(true),
                Node::Null,
                Node::Text("yes".into()),
                Node::Text("5s".into()),
                Node::Text("127.0.0.1".into()),
                Node::Text("7".into()),
            ]
        );
        assert!(matches!(items[9], Node::Float(value) if value.is_nan()));
    }

    #[test]
    fn a_key_given_twice_is_refused_with_its_place() {
        let error = parse_yaml("a: 1\nb:\n  c: 1\n  c: 2\n").unwrap_err();
        assert!(error.to_string().contains("\"c\" stands twice"), "{error}");
        assert!(error.at.is_some(), "{error}");
        let error = parse_json("{\"a\":1,\n\"a\":2}").unwrap_err();
        assert_eq!(error.at.map(|at| at.0), Some(2), "{error}");
    }

    #[test]
    fn broken_text_names_line_and_column() {
        let error = parse_yaml("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.to_string().starts_with("line "), "{error}");
        let error = parse_json("{\n \"a\": }").unwrap_err();
        assert_eq!(error.at.map(|at| at.0), Some(2), "{error}");
        assert!(parse_json("{} {}").is_err());
        assert!(parse_yaml("a: 1\n---\nb: 1\n").is_err());
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: u32| "[".repeat(depth as usize) + &"]".repeat(depth as usize);
        assert!(parse_json(&nested(MAX_DEPTH)).is_ok());
        assert!(parse_yaml(&nested(MAX_DEPTH)).is_ok());
        for error in [parse_json(&nested(MAX_DEPTH + 1)), parse_yaml(&nested(MAX_DEPTH + 1))] {
            let error = error.unwrap_err();
            assert!(error.reason.contains("deep"), "{error}");
        }
        assert!(parse_json(&nested(1_000_000)).is_err());
        assert!(parse_yaml(&nested(10_000)).is_err());
    }

    #[test]
    fn anchors_that_multiply_are_bounded() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", previous.trim_end_matches(", ")));
        }
        let error = parse_yaml(&text).unwrap_err();
        assert!(error.reason.contains("repetition") || error.reason.contains("repeated"), "{error}");
    }

    #[test]
    fn the_node_limit_is_exact() {
        let list = |items: u64| format!("[{}]", vec!["1"; items as usize].join(","));
        assert!(parse_json(&list(MAX_NODES - 1)).is_ok());
        assert!(parse_json(&list(MAX_NODES)).is_err());
    }

    #[test]
    fn ignored_keys_hold_anchors() {
        let node = parse_yaml("!ignore shared: &port 80\nuse: *port\n").unwrap();
        assert_eq!(node, Node::Map(vec![("use".into(), Node::Int(80))]));
        assert!(parse_yaml("!other a: 1\n").unwrap_err().reason.contains("!other"));
        assert!(parse_yaml("a: !other 1\n").unwrap_err().reason.contains("!other"));
        assert!(parse_yaml("a: &a {x: 1}\nb: {<<: *a}\n").unwrap_err().reason.contains("merge"));
    }
}
