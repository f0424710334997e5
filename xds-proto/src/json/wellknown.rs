//! Messages whose JSON form is not a mapping of their fields.

use std::str::FromStr;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_types as wkt;

use super::read::Reader;
use crate::any;
use crate::descriptor;
use crate::document::{Node, shorten};
use crate::reflect::{DynamicMessage, MessageDescriptor, Value};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Largest absolute value of a `Duration`, about 10,000 years, from `google/protobuf/duration.proto`.
const MAX_SECONDS: i64 = 315_576_000_000;

type Read = fn(&mut Reader, &MessageDescriptor, &Node) -> Option<DynamicMessage>;

/// The reader of a message with a JSON form of its own.
pub(super) fn reader(full_name: &str) -> Option<Read> {
    Some(match full_name {
        "google.protobuf.Any" => read_any,
        "google.protobuf.BoolValue" => |r, d, n| Some(wrapped(d, Value::Bool(r.boolean(n)?))),
        "google.protobuf.BytesValue" => |r, d, n| Some(wrapped(d, Value::Bytes(r.bytes(n)?.into()))),
        "google.protobuf.DoubleValue" => |r, d, n| Some(wrapped(d, Value::F64(r.float(n)?))),
        "google.protobuf.FloatValue" => |r, d, n| Some(wrapped(d, Value::F32(r.single(n)?))),
        "google.protobuf.Int32Value" => |r, d, n| Some(wrapped(d, Value::I32(r.integer(n)?))),
        "google.protobuf.Int64Value" => |r, d, n| Some(wrapped(d, Value::I64(r.integer(n)?))),
        "google.protobuf.StringValue" => |r, d, n| Some(wrapped(d, Value::String(r.text(n)?.to_owned()))),
        "google.protobuf.UInt32Value" => |r, d, n| Some(wrapped(d, Value::U32(r.integer(n)?))),
        "google.protobuf.UInt64Value" => |r, d, n| Some(wrapped(d, Value::U64(r.integer(n)?))),
        "google.protobuf.Duration" => read_duration,
        "google.protobuf.FieldMask" => read_field_mask,
        "google.protobuf.ListValue" => read_list,
        "google.protobuf.Struct" => read_struct,
        "google.protobuf.Timestamp" => read_timestamp,
        "google.protobuf.Value" => |_, d, n| Some(transcoded(d, &json_value(n))),
        _ => return None,
    })
}

pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

pub(super) fn encode_base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn wrapped(descriptor: &MessageDescriptor, value: Value) -> DynamicMessage {
    let mut message = DynamicMessage::new(*descriptor);
    message.set_field_by_number(1, value);
    message
}

fn transcoded(descriptor: &MessageDescriptor, value: &impl prost::Message) -> DynamicMessage {
    let mut message = DynamicMessage::new(*descriptor);
    message.transcode_from(value).expect("the value is of the type that the descriptor describes");
    message
}

fn read_any(reader: &mut Reader, descriptor: &MessageDescriptor, node: &Node) -> Option<DynamicMessage> {
    let Node::Map(entries) = node else {
        return reader.expected("a mapping with @type", node);
    };
    let Some((_, url)) = entries.iter().find(|(name, _)| name == "@type") else {
        return if entries.is_empty() {
            Some(DynamicMessage::new(*descriptor))
        } else {
            reader.refuse("@type is missing; it names the type of the other fields")
        };
    };
    let (url, content) = reader.at_field("@type", |reader| {
        let url = reader.text(url)?;
        match any::type_name(url).map(descriptor::message) {
            Ok(Some(content)) => Some((url, content)),
            Ok(None) => reader.refuse(format!("type {:?} is not known", shorten(url))),
            Err(error) => reader.refuse(error.to_string()),
        }
    })?;
    let rest = || entries.iter().filter(|(name, _)| name != "@type");
    let message = match reader_with_value(content.full_name()) {
        None => reader.fields(&content, rest().map(|(name, node)| (name.as_str(), node)))?,
        Some(read) => {
            let mut value = None;
            for (name, node) in rest() {
                match name.as_str() {
                    "value" => value = Some(node),
                    _ => {
                        return reader.at_field(name, |reader| {
                            reader.refuse(format!("{} takes its content in value", content.full_name()))
                        });
                    }
                }
            }
            match value {
                Some(node) => reader.at_field("value", |reader| read(reader, &content, node))?,
                None if content.full_name() == "google.protobuf.Empty" => DynamicMessage::new(content),
                None => return reader.refuse(format!("{} takes its content in value", content.full_name())),
            }
        }
    };
    let mut any = DynamicMessage::new(*descriptor);
    any.set_field_by_number(1, Value::String(url.to_owned()));
    any.set_field_by_number(2, Value::Bytes(prost::Message::encode_to_vec(&message).into()));
    Some(any)
}

/// As [`reader`], and `Empty`: it is a plain mapping, but inside an `Any` it too stands in `value`.
fn reader_with_value(full_name: &str) -> Option<Read> {
    if full_name == "google.protobuf.Empty" {
        return Some(|reader, descriptor, node| reader.message(descriptor, node));
    }
    reader(full_name)
}

fn read_duration(reader: &mut Reader, descriptor: &MessageDescriptor, node: &Node) -> Option<DynamicMessage> {
    let Node::Text(text) = node else {
        return reader.expected("a span of time such as 0.25s", node);
    };
    let Some((seconds, nanos)) = parse_span(text) else {
        let hint = match milliseconds(text) {
            Some(seconds) => format!("; write {seconds}"),
            None => String::new(),
        };
        return reader.refuse(format!("expected a span of time such as 0.25s, found {}{hint}", node.describe()));
    };
    if seconds.abs() > MAX_SECONDS || (seconds.abs() == MAX_SECONDS && nanos != 0) {
        return reader.refuse(format!("{text} is not in -{MAX_SECONDS}s..={MAX_SECONDS}s"));
    }
    Some(transcoded(descriptor, &wkt::Duration { seconds, nanos }))
}

/// `-1.5s` → seconds and nanoseconds, both of the same sign.
fn parse_span(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (is_negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    Some(if is_negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// `250ms` → `0.250s`, what its writer meant.
fn milliseconds(text: &str) -> Option<String> {
    let millis: u32 = text.strip_suffix("ms")?.trim().parse().ok()?;
    Some(format!("{}.{:03}s", millis / 1000, millis % 1000))
}

fn read_timestamp(reader: &mut Reader, descriptor: &MessageDescriptor, node: &Node) -> Option<DynamicMessage> {
    let text = reader.text(node)?;
    match wkt::Timestamp::from_str(text) {
        Ok(timestamp) => Some(transcoded(descriptor, &timestamp)),
        Err(_) => reader.refuse(format!("expected a time such as 2030-01-31T08:00:00Z, found {}", node.describe())),
    }
}

fn read_field_mask(reader: &mut Reader, descriptor: &MessageDescriptor, node: &Node) -> Option<DynamicMessage> {
    let text = reader.text(node)?;
    let mut paths = Vec::new();
    for path in text.split(',').filter(|path| !path.is_empty()) {
        let mut snake = String::with_capacity(path.len());
        for letter in path.chars() {
            if letter.is_ascii_uppercase() {
                snake.push('_');
            }
            snake.push(letter.to_ascii_lowercase());
        }
        paths.push(snake);
    }
    Some(transcoded(descriptor, &wkt::FieldMask { paths }))
}

fn read_struct(reader: &mut Reader, descriptor: &MessageDescriptor, node: &Node) -> Option<DynamicMessage> {
    match node {
        Node::Map(entries) => Some(transcoded(descriptor, &json_struct(entries))),
        _ => reader.expected("a mapping", node),
    }
}

fn read_list(reader: &mut Reader, descriptor: &MessageDescriptor, node: &Node) -> Option<DynamicMessage> {
    match node {
        Node::List(items) => Some(transcoded(descriptor, &json_list(items))),
        _ => reader.expected("a list", node),
    }
}

fn json_struct(entries: &[(String, Node)]) -> wkt::Struct {
    wkt::Struct { fields: entries.iter().map(|(name, node)| (name.clone(), json_value(node))).collect() }
}

fn json_list(items: &[Node]) -> wkt::ListValue {
    wkt::ListValue { values: items.iter().map(json_value).collect() }
}

fn json_value(node: &Node) -> wkt::Value {
    use wkt::value::Kind;
    let kind = match node {
        Node::Null => Kind::NullValue(0),
        Node::Bool(value) => Kind::BoolValue(*value),
        #[allow(clippy::cast_precision_loss, reason = "google.protobuf.Value has doubles only")]
        Node::Int(value) => Kind::NumberValue(*value as f64),
        Node::Float(value) => Kind::NumberValue(*value),
        Node::Text(text) => Kind::StringValue(text.clone()),
        Node::List(items) => Kind::ListValue(json_list(items)),
        Node::Map(entries) => Kind::StructValue(json_struct(entries)),
    };
    wkt::Value { kind: Some(kind) }
}
