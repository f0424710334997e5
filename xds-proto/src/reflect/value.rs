//! Values of fields.

use std::collections::HashMap;

use prost::bytes::Bytes;

use super::descriptor::{FieldDescriptor, Kind};
use super::message::DynamicMessage;

/// The value of a field.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the types of protobuf by the Rust types that hold them")]
pub enum Value {
    Bool(bool),
    Bytes(Bytes),
    EnumNumber(i32),
    F32(f32),
    F64(f64),
    I32(i32),
    I64(i64),
    List(Vec<Value>),
    Map(HashMap<MapKey, Value>),
    Message(DynamicMessage),
    String(String),
    U32(u32),
    U64(u64),
}

impl Value {
    /// What a field is when it is not set.
    pub(super) fn default_of(field: &FieldDescriptor) -> Self {
        if field.is_map() {
            Self::Map(HashMap::new())
        } else if field.is_list() {
            Self::List(Vec::new())
        } else {
            Self::default_item(field.kind())
        }
    }

    /// The default of one value of this kind.
    pub(super) fn default_item(kind: Kind) -> Self {
        match kind {
            Kind::Bool => Self::Bool(false),
            Kind::Bytes => Self::Bytes(Bytes::new()),
            Kind::Double => Self::F64(0.0),
            Kind::Enum(_) => Self::EnumNumber(0),
            Kind::Float => Self::F32(0.0),
            Kind::Fixed32 | Kind::Uint32 => Self::U32(0),
            Kind::Fixed64 | Kind::Uint64 => Self::U64(0),
            Kind::Int32 | Kind::Sfixed32 | Kind::Sint32 => Self::I32(0),
            Kind::Int64 | Kind::Sfixed64 | Kind::Sint64 => Self::I64(0),
            Kind::Message(message) => Self::Message(DynamicMessage::new(message)),
            Kind::String => Self::String(String::new()),
        }
    }

    /// Whether a field without presence counts as unset with it.
    pub(super) fn is_default(&self) -> bool {
        match self {
            Self::Bool(value) => !value,
            Self::Bytes(value) => value.is_empty(),
            Self::F32(value) => *value == 0.0,
            Self::F64(value) => *value == 0.0,
            Self::EnumNumber(value) | Self::I32(value) => *value == 0,
            Self::I64(value) => *value == 0,
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.is_empty(),
            Self::Message(_) => false,
            Self::String(value) => value.is_empty(),
            Self::U32(value) => *value == 0,
            Self::U64(value) => *value == 0,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The message, if it is one.
    pub fn as_message(&self) -> Option<&DynamicMessage> {
        match self {
            Self::Message(message) => Some(message),
            _ => None,
        }
    }
}

/// The key of a map entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "as those of `Value`")]
pub enum MapKey {
    Bool(bool),
    I32(i32),
    I64(i64),
    String(String),
    U32(u32),
    U64(u64),
}

impl MapKey {
    /// None for a value that no map has as its key.
    pub(super) fn new(value: Value) -> Option<Self> {
        Some(match value {
            Value::Bool(key) => Self::Bool(key),
            Value::I32(key) => Self::I32(key),
            Value::I64(key) => Self::I64(key),
            Value::String(key) => Self::String(key),
            Value::U32(key) => Self::U32(key),
            Value::U64(key) => Self::U64(key),
            _ => return None,
        })
    }

    pub(super) fn to_value(&self) -> Value {
        match self {
            Self::Bool(key) => Value::Bool(*key),
            Self::I32(key) => Value::I32(*key),
            Self::I64(key) => Value::I64(*key),
            Self::String(key) => Value::String(key.clone()),
            Self::U32(key) => Value::U32(*key),
            Self::U64(key) => Value::U64(*key),
        }
    }
}
