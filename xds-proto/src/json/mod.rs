//! Messages from YAML and JSON, and to JSON.
//!
//! **Purpose.** The protobuf JSON mapping both ways, with errors a person can act on: every mistake of a document at
//! once, each with its path, and a suggestion where a name is nearly right.
//! **Shape.** text → [`crate::document::Node`] → [`DynamicMessage`] (checked against the descriptor) → the generated type.
//! Fields are accepted as `snake_case` and `camelCase`; `@type` selects the type inside an `Any`.
//! **Errors.** [`ParseError`]: the text is broken (line, column), or up to [`MAX_REJECTIONS`] paths are refused.
//! **Limits.** Those of [`crate::document`]; an `Any` nests as deep as the document.
//! **Source.** protobuf.dev, "ProtoJSON". Stricter: an unknown field, an enum number without a name, NaN and infinity are
//! refused. An `Any` of a well-known type takes its JSON form in `value`.
//! **Tests.** `tests/bootstrap.rs`, `tests/messages.rs`, `tests/robust.rs`.

mod read;
mod wellknown;
mod write;

use prost::{Message, Name};
use prost_types as wkt;

use crate::any::UnpackError;
use crate::descriptor;
use crate::document::{self, Node, SyntaxError};
use crate::envoy::google::protobuf::Any;
use crate::reflect::{DynamicMessage, MessageDescriptor};

pub use read::MAX_REJECTIONS;
pub use write::FieldNames;

/// One refused place in a document or message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{reason}", .path, if .path.is_empty() { "" } else { ": " })]
pub struct Rejection {
    /// Where: `static_resources.listeners[0].name`; empty for the root.
    pub path: String,
    /// Why, and what would be right.
    pub reason: String,
}

/// Why a document is not the message it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text is well formed, its content is not.
    #[error("{}", join(.0))]
    Refused(Vec<Rejection>),
    /// The text is not YAML or JSON, or exceeds a limit.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
}

impl ParseError {
    /// The refused places; for broken text, one whose path is empty.
    pub fn rejections(&self) -> Vec<Rejection> {
        match self {
            Self::Refused(rejections) => rejections.clone(),
            Self::Syntax(error) => vec![Rejection { path: String::new(), reason: error.to_string() }],
        }
    }
}

fn join(rejections: &[Rejection]) -> String {
    rejections.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads a generated type from YAML: `from_yaml::<Bootstrap>(text)`.
pub fn from_yaml<T: Name + Default>(text: &str) -> Result<T, ParseError> {
    typed(parse_yaml(text, &descriptor::of::<T>())?)
}

/// Reads a generated type from JSON.
pub fn from_json<T: Name + Default>(text: &str) -> Result<T, ParseError> {
    typed(parse_json(text, &descriptor::of::<T>())?)
}

/// Reads a generated type from a JSON value, a part of a larger document for instance.
pub fn from_value<T: Name + Default>(value: &serde_json::Value) -> Result<T, ParseError> {
    typed(read::message(&descriptor::of::<T>(), &document::parse_value(value)?).map_err(ParseError::Refused)?)
}

/// Reads a message of a type known at run time from YAML.
pub fn parse_yaml(text: &str, message: &MessageDescriptor) -> Result<DynamicMessage, ParseError> {
    let node = document::parse_yaml(text)?;
    refuse_empty(&node)?;
    read::message(message, &node).map_err(ParseError::Refused)
}

/// Reads a message of a type known at run time from JSON.
pub fn parse_json(text: &str, message: &MessageDescriptor) -> Result<DynamicMessage, ParseError> {
    let node = document::parse_json(text)?;
    refuse_empty(&node)?;
    read::message(message, &node).map_err(ParseError::Refused)
}

/// JSON of a generated type, fields named as in the `.proto` files, like Envoy's own dumps.
/// An `Any` whose type is not known is written as `{"@type": …, "value": <base64>}`.
pub fn to_json<T: Name>(message: &T) -> serde_json::Value {
    write::bytes(&descriptor::of::<T>(), &message.encode_to_vec(), FieldNames::Proto)
        .unwrap_or_else(|error| serde_json::Value::String(error.to_string()))
}

/// JSON of an encoded message of the type `type_name`.
pub fn to_json_bytes(type_name: &str, bytes: &[u8], names: FieldNames) -> Result<serde_json::Value, UnpackError> {
    let message =
        descriptor::message(type_name).ok_or_else(|| UnpackError::UnknownType { type_name: type_name.to_owned() })?;
    write::bytes(&message, bytes, names)
}

/// JSON of a message read by reflection.
pub fn to_json_dynamic(message: &DynamicMessage, names: FieldNames) -> serde_json::Value {
    write::message(message, names)
}

/// JSON of what `any` carries, with its `@type`.
pub fn any_to_json(any: &Any) -> serde_json::Value {
    write::any(&any.type_url, &any.value, FieldNames::Proto)
}

/// Reads a message from the `Struct` of a `TypedStruct`.
pub(crate) fn from_struct(value: wkt::Struct, message: &MessageDescriptor) -> Result<DynamicMessage, ParseError> {
    let value = write::json_value(&wkt::Value { kind: Some(wkt::value::Kind::StructValue(value)) });
    read::message(message, &document::parse_value(&value)?).map_err(ParseError::Refused)
}

/// A document without content is more likely a mistake than a message with every field unset.
fn refuse_empty(node: &Node) -> Result<(), ParseError> {
    if matches!(node, Node::Null) {
        return Err(ParseError::Syntax(SyntaxError { at: None, reason: "the document is empty".into() }));
    }
    Ok(())
}

fn typed<T: Message + Default>(message: DynamicMessage) -> Result<T, ParseError> {
    message
        .transcode_to()
        .map_err(|error| ParseError::Refused(vec![Rejection { path: String::new(), reason: error.to_string() }]))
}
