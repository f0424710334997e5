//! Every embedded message through JSON, bytes and the support walk, empty and with each of its fields set.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use outrigger_xds_proto::json::{self, FieldNames};
use outrigger_xds_proto::reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};
use outrigger_xds_proto::{any, bounds, descriptor, support};
use prost::Message;

fn round_trip(message: &DynamicMessage) {
    let descriptor = message.descriptor();
    for names in [FieldNames::Camel, FieldNames::Proto] {
        let written = json::to_json_dynamic(message, names);
        let read = json::parse_json(&written.to_string(), &descriptor)
            .unwrap_or_else(|error| panic!("{}: {error}\n{written}", descriptor.full_name()));
        // Compared encoded: a wrapper of the default equals one without a value on the wire only.
        assert_eq!(read.encode_to_vec(), message.encode_to_vec(), "{}\n{written}", descriptor.full_name());
    }
    let bytes = message.encode_to_vec();
    assert_eq!(bounds::scan(&descriptor, &bytes), Ok(()), "{}", descriptor.full_name());
    let decoded = any::decode_dynamic(&descriptor, &bytes).unwrap();
    assert_eq!(decoded.encode_to_vec(), bytes, "{}", descriptor.full_name());
    support::walk_bytes(descriptor.full_name(), &bytes, "").unwrap();
}

/// A value that is not the default, of a kind that is not a message.
fn scalar(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String("a \"b\" ✓".into()),
        Kind::Bytes => Value::Bytes(vec![0, 0xff, 0x3e].into()),
        Kind::Double => Value::F64(-0.1),
        Kind::Float => Value::F32(0.1),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(i32::MIN),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(i64::MIN),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(u32::MAX),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::MAX),
        Kind::Enum(values) => Value::EnumNumber(values.values().last().map_or(0, |value| value.number())),
        Kind::Message(_) => unreachable!("a message is not a scalar"),
    }
}

fn example(kind: &Kind) -> Value {
    match kind {
        Kind::Message(message) => Value::Message(sample(message)),
        kind => scalar(kind),
    }
}

/// A message without fields, except where JSON has no way to say that.
fn sample(descriptor: &MessageDescriptor) -> DynamicMessage {
    let mut message = DynamicMessage::new(*descriptor);
    if descriptor.full_name() == "google.protobuf.Value" {
        message.set_field_by_name("bool_value", Value::Bool(true));
    }
    message
}

fn field_value(field: &FieldDescriptor) -> Value {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let key = match scalar(&entry.map_entry_key_field().kind()) {
                Value::Bool(key) => MapKey::Bool(key),
                Value::I32(key) => MapKey::I32(key),
                Value::I64(key) => MapKey::I64(key),
                Value::U32(key) => MapKey::U32(key),
                Value::U64(key) => MapKey::U64(key),
                Value::String(key) => MapKey::String(key),
                other => panic!("{other:?} as a key"),
            };
            Value::Map([(key, example(&entry.map_entry_value_field().kind()))].into())
        }
        kind if field.is_list() => Value::List(vec![example(&kind)]),
        kind => example(&kind),
    }
}

#[test]
fn every_message_round_trips_empty() {
    let mut count = 0;
    for message in descriptor::messages().filter(|message| !message.is_map_entry()) {
        round_trip(&sample(&message));
        count += 1;
    }
    assert!(count > 1_500, "{count}");
}

#[test]
fn every_field_round_trips() {
    let mut count = 0;
    for descriptor in descriptor::messages().filter(|message| !message.is_map_entry()) {
        // Messages with a JSON form of their own do not hold arbitrary fields; the next test has them.
        if descriptor.full_name().starts_with("google.protobuf.") {
            continue;
        }
        for field in descriptor.fields() {
            let mut message = DynamicMessage::new(descriptor);
            message.set_field(&field, field_value(&field));
            round_trip(&message);
            count += 1;
        }
    }
    assert!(count > 5_000, "{count}");
}

#[test]
fn well_known_types_have_their_own_form() {
    for (name, text) in [
        ("BoolValue", "true"),
        ("BytesValue", "\"AP8+\""),
        ("DoubleValue", "0.1"),
        ("Duration", "\"-1.000000001s\""),
        ("Duration", "\"0.250s\""),
        ("Duration", "\"315576000000s\""),
        ("FieldMask", "\"aB,c.dE\""),
        ("FloatValue", "0.1"),
        ("Int64Value", "\"-9223372036854775808\""),
        ("ListValue", "[1,\"a\",null,{\"b\":[true]}]"),
        ("StringValue", "\"s\""),
        ("Struct", "{\"a\":{\"b\":1.5}}"),
        ("Timestamp", "\"2030-01-31T08:00:00Z\""),
        ("UInt64Value", "\"18446744073709551615\""),
        ("Value", "null"),
    ] {
        let full_name = format!("google.protobuf.{name}");
        let message = descriptor::message(&full_name).unwrap_or_else(|| panic!("{name} is not embedded"));
        let read = if name == "Value" {
            let mut read = DynamicMessage::new(message);
            read.set_field_by_name("null_value", Value::EnumNumber(0));
            read
        } else {
            json::parse_json(text, &message).unwrap_or_else(|error| panic!("{name} {text}: {error}"))
        };
        assert_eq!(json::to_json_dynamic(&read, FieldNames::Camel).to_string(), text, "{name}");

        let url = format!("type.googleapis.com/{full_name}");
        let packed = outrigger_xds_proto::envoy::google::protobuf::Any { type_url: url, value: read.encode_to_vec() };
        let written = json::any_to_json(&packed);
        assert_eq!(written["value"].to_string(), text, "{name} in an Any");
        assert_eq!(json::from_value(&written), Ok(packed), "{written}");
    }
    for (name, text) in [
        ("Duration", "\"1.0000000001s\""),
        ("Duration", "\"315576000001s\""),
        ("Duration", "\"1\""),
        ("Duration", "\"s\""),
        ("Duration", "\"--1s\""),
        ("Duration", "1"),
        ("Timestamp", "\"yesterday\""),
        ("BytesValue", "\"#\""),
        ("UInt32Value", "4294967296"),
        ("Int32Value", "1.5"),
        ("UInt64Value", "\"-1\""),
        ("DoubleValue", "\"NaN\""),
        ("FloatValue", "1e39"),
    ] {
        let message = descriptor::message(&format!("google.protobuf.{name}")).unwrap();
        assert!(json::parse_json(text, &message).is_err(), "{name} {text}");
    }
}

#[test]
fn an_unknown_any_is_written_as_bytes() {
    let any = outrigger_xds_proto::envoy::google::protobuf::Any {
        type_url: "x/stats.PluginConfig".into(),
        value: vec![1, 2],
    };
    assert_eq!(json::any_to_json(&any), serde_json::json!({ "@type": "x/stats.PluginConfig", "value": "AQI=" }));
    let error = json::from_value::<outrigger_xds_proto::envoy::google::protobuf::Any>(&json::any_to_json(&any));
    assert!(error.unwrap_err().to_string().contains("is not known"));
}
