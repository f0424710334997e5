//! A message → JSON.

use prost_types as wkt;
use serde_json::{Map, Number, Value as Json};

use super::wellknown::encode_base64;
use crate::any::{self, UnpackError};
use crate::bounds;
use crate::descriptor;
use crate::reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

/// How the fields of a message are named in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldNames {
    /// `lowerCamelCase`, the mapping's own form.
    Camel,
    /// As in the `.proto` file, the form of Envoy's documentation and dumps.
    Proto,
}

pub(super) fn bytes(descriptor: &MessageDescriptor, bytes: &[u8], names: FieldNames) -> Result<Json, UnpackError> {
    Ok(Writer { names, any_depth: 0 }.message(&any::decode_dynamic(descriptor, bytes)?))
}

pub(super) fn message(message: &DynamicMessage, names: FieldNames) -> Json {
    Writer { names, any_depth: 0 }.message(message)
}

/// What an `Any` carries; its bytes in base64 when they cannot be read.
pub(super) fn any(url: &str, content: &[u8], names: FieldNames) -> Json {
    Writer { names, any_depth: 0 }.any(url, content)
}

#[derive(Clone, Copy)]
struct Writer {
    names: FieldNames,
    /// How many `Any`s enclose this place.
    any_depth: usize,
}

impl Writer {
    fn any(self, url: &str, content: &[u8]) -> Json {
        let mut object = Map::new();
        if url.is_empty() && content.is_empty() {
            return Json::Object(object);
        }
        object.insert("@type".into(), url.into());
        let decoded = (self.any_depth < bounds::MAX_ANY_DEPTH)
            .then(|| any::type_name(url).ok().and_then(descriptor::message))
            .flatten()
            .and_then(|descriptor| any::decode_dynamic(&descriptor, content).ok());
        let Some(message) = decoded else {
            object.insert("value".into(), encode_base64(content).into());
            return Json::Object(object);
        };
        let inside = Self { any_depth: self.any_depth + 1, ..self };
        if message.descriptor().full_name() == "google.protobuf.Empty" {
            object.insert("value".into(), Json::Object(Map::new()));
        } else if let Some(value) = inside.own_form(&message) {
            object.insert("value".into(), value);
        } else {
            inside.fields(&message, &mut object);
        }
        Json::Object(object)
    }

    fn message(self, message: &DynamicMessage) -> Json {
        self.own_form(message).unwrap_or_else(|| {
            let mut object = Map::new();
            self.fields(message, &mut object);
            Json::Object(object)
        })
    }

    fn fields(self, message: &DynamicMessage, object: &mut Map<String, Json>) {
        for (field, value) in message.fields() {
            let name = match self.names {
                FieldNames::Camel => field.json_name(),
                FieldNames::Proto => field.name(),
            };
            object.insert(name.to_owned(), self.field(&field, value));
        }
    }

    fn field(self, field: &FieldDescriptor, value: &Value) -> Json {
        match value {
            Value::List(items) => Json::Array(items.iter().map(|item| self.value(&field.kind(), item)).collect()),
            Value::Map(entries) => {
                let kind = match field.kind() {
                    Kind::Message(entry) => entry.map_entry_value_field().kind(),
                    kind => kind,
                };
                Json::Object(entries.iter().map(|(key, value)| (map_key(key), self.value(&kind, value))).collect())
            }
            value => self.value(&field.kind(), value),
        }
    }

    fn value(self, kind: &Kind, value: &Value) -> Json {
        match value {
            Value::Bool(value) => Json::Bool(*value),
            Value::I32(value) => Json::from(*value),
            Value::U32(value) => Json::from(*value),
            Value::I64(value) => value.to_string().into(),
            Value::U64(value) => value.to_string().into(),
            Value::F32(value) => float(f64::from(*value), || value.to_string()),
            Value::F64(value) => float(*value, || value.to_string()),
            Value::String(value) => value.as_str().into(),
            Value::Bytes(value) => encode_base64(value).into(),
            Value::EnumNumber(number) => enumerator(kind, *number),
            Value::Message(message) => self.message(message),
            // A list or map never stands inside another one without a message between.
            Value::List(_) | Value::Map(_) => Json::Null,
        }
    }

    /// The JSON of a message that is not written as a mapping of its fields.
    fn own_form(self, message: &DynamicMessage) -> Option<Json> {
        let descriptor = message.descriptor();
        let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
        Some(match name {
            "Any" => {
                let any: wkt::Any = message.transcode_to().ok()?;
                self.any(&any.type_url, &any.value)
            }
            "BoolValue" | "BytesValue" | "DoubleValue" | "FloatValue" | "Int32Value" | "Int64Value" | "StringValue"
            | "UInt32Value" | "UInt64Value" => {
                let field = descriptor.get_field(1)?;
                self.value(&field.kind(), &message.get_field(&field))
            }
            "Duration" => span(&message.transcode_to().ok()?).into(),
            "FieldMask" => {
                let mask: wkt::FieldMask = message.transcode_to().ok()?;
                mask.paths.iter().map(|path| camel(path)).collect::<Vec<_>>().join(",").into()
            }
            "ListValue" => json_list(&message.transcode_to().ok()?),
            "Struct" => json_struct(&message.transcode_to().ok()?),
            "Timestamp" => message.transcode_to::<wkt::Timestamp>().ok()?.to_string().into(),
            "Value" => json_value(&message.transcode_to().ok()?),
            _ => return None,
        })
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// A finite number in the shortest form of its own width: 0.1 of an f32 is 0.1, not 0.10000000149.
fn float(value: f64, shortest: impl Fn() -> String) -> Json {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    shortest().parse().ok().and_then(Number::from_f64).map_or(Json::Null, Json::Number)
}

fn enumerator(kind: &Kind, number: i32) -> Json {
    match kind {
        Kind::Enum(descriptor) if descriptor.full_name() == "google.protobuf.NullValue" => Json::Null,
        Kind::Enum(descriptor) => match descriptor.get_value(number) {
            Some(value) => value.name().into(),
            None => number.into(),
        },
        _ => number.into(),
    }
}

/// Seconds with as many digits as needed: `1s`, `0.250s`, `0.000001s`.
fn span(duration: &wkt::Duration) -> String {
    let is_negative = duration.seconds < 0 || duration.nanos < 0;
    let sign = if is_negative { "-" } else { "" };
    let seconds = duration.seconds.unsigned_abs();
    let nanos = duration.nanos.unsigned_abs();
    if nanos == 0 {
        format!("{sign}{seconds}s")
    } else if nanos.is_multiple_of(1_000_000) {
        format!("{sign}{seconds}.{:03}s", nanos / 1_000_000)
    } else if nanos.is_multiple_of(1_000) {
        format!("{sign}{seconds}.{:06}s", nanos / 1_000)
    } else {
        format!("{sign}{seconds}.{nanos:09}s")
    }
}

fn camel(snake: &str) -> String {
    let mut camel = String::with_capacity(snake.len());
    let mut raise = false;
    for letter in snake.chars() {
        match letter {
            '_' => raise = true,
            letter if raise => {
                camel.push(letter.to_ascii_uppercase());
                raise = false;
            }
            letter => camel.push(letter),
        }
    }
    camel
}

fn json_struct(message: &wkt::Struct) -> Json {
    Json::Object(message.fields.iter().map(|(name, value)| (name.clone(), json_value(value))).collect())
}

fn json_list(message: &wkt::ListValue) -> Json {
    Json::Array(message.values.iter().map(json_value).collect())
}

pub(crate) fn json_value(message: &wkt::Value) -> Json {
    use wkt::value::Kind;
    match &message.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::NumberValue(value)) => number(*value),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::ListValue(list)) => json_list(list),
        Some(Kind::StructValue(fields)) => json_struct(fields),
    }
}

/// A whole number of a `Value` without its `.0`: it was most likely written as one.
fn number(value: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[allow(clippy::cast_possible_truncation, reason = "integral, and within 2^53")]
        return Json::from(value as i64);
    }
    float(value, || value.to_string())
}
