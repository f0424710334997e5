use std::collections::BTreeSet;

use prost_reflect as other;

use super::*;
use prost::Message as _;

/// The same descriptors, read by another crate.
fn pool() -> other::DescriptorPool {
    let encoded: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    other::DescriptorPool::decode(encoded).unwrap()
}

#[test]
fn descriptors_are_those_of_the_pool() {
    let pool = pool();
    let mut count = 0;
    for theirs in pool.all_messages() {
        let ours = MessageDescriptor::find(theirs.full_name()).unwrap();
        assert_eq!(ours.full_name(), theirs.full_name());
        assert_eq!(ours.is_map_entry(), theirs.is_map_entry(), "{ours:?}");
        assert_eq!(ours.fields().count(), theirs.fields().count(), "{ours:?}");
        for (our_field, their_field) in ours.fields().zip(theirs.fields()) {
            assert_same_field(our_field, &their_field);
            assert_eq!(ours.get_field(their_field.number()), Some(our_field));
        }
        assert_eq!(ours.get_field(0), None);
        assert_eq!(ours.get_field(u32::MAX), None);
        count += 1;
    }
    assert_eq!(MessageDescriptor::all().count(), count);
    assert!(MessageDescriptor::all().is_sorted_by_key(|message| message.full_name()));
    for name in ["", "a", "envoy.config.cluster.v3", "zzz"] {
        assert_eq!(MessageDescriptor::find(name), None);
    }
}

fn assert_same_field(ours: FieldDescriptor, theirs: &other::FieldDescriptor) {
    assert_eq!(ours.full_name(), theirs.full_name());
    assert_eq!(
        (ours.name(), ours.json_name(), ours.number()),
        (theirs.name(), theirs.json_name(), theirs.number()),
        "{ours:?}"
    );
    assert_eq!(
        (ours.is_list(), ours.is_map(), ours.is_packed(), ours.supports_presence()),
        (theirs.is_list(), theirs.is_map(), theirs.is_packed(), theirs.supports_presence()),
        "{ours:?}"
    );
    assert!(!theirs.is_group(), "{ours:?}");
    let siblings = |field: u32| ours.parent_message().get_field(field).and_then(|field| field.containing_oneof());
    match theirs.containing_oneof() {
        None => assert_eq!(ours.containing_oneof(), None, "{ours:?}"),
        Some(oneof) => assert!(
            oneof.fields().all(|field| siblings(field.number()) == ours.containing_oneof())
                && ours.containing_oneof().is_some(),
            "{ours:?}"
        ),
    }
    match (ours.kind(), theirs.kind()) {
        (Kind::Message(ours), other::Kind::Message(theirs)) => assert_eq!(ours.full_name(), theirs.full_name()),
        (Kind::Enum(ours), other::Kind::Enum(theirs)) => {
            assert_eq!(ours.full_name(), theirs.full_name());
            // Of one number, ours come as declared, theirs in no order.
            let our_values: BTreeSet<_> =
                ours.values().map(|value| (value.number(), value.name().to_owned())).collect();
            let their_values = theirs.values().map(|value| (value.number(), value.name().to_owned())).collect();
            assert_eq!(our_values, their_values, "{ours:?}");
            assert!(ours.values().is_sorted_by_key(|value| value.number()), "{ours:?}");
        }
        (ours, theirs) => assert_eq!(format!("{ours:?}").to_lowercase(), format!("{theirs:?}")),
    }
}

/// For each field of each message: bytes that the pool's message writes are read by ours, written the same, and read
/// back as the same message; also with a second value, and behind an unknown field.
#[test]
fn the_wire_form_is_that_of_the_pool() {
    let mut count = 0;
    for theirs in pool().all_messages() {
        let ours = MessageDescriptor::find(theirs.full_name()).unwrap();
        for field in theirs.fields() {
            for rank in 0..3 {
                let mut written = other::DynamicMessage::new(theirs.clone());
                written.set_field(&field, value(&field, rank));
                let bytes = written.encode_to_vec();
                let read = DynamicMessage::decode(ours, &bytes).unwrap();
                assert_eq!(read.encode_to_vec(), bytes, "{field:?}");
                assert_eq!(read.encoded_len(), bytes.len(), "{field:?}");
                assert_eq!(read.fields().count(), written.fields().count(), "{field:?}");
                let twice = [bytes.as_slice(), &[0xf8, 0xff, 0xff, 0xff, 0x0f, 1], &bytes].concat();
                let read = DynamicMessage::decode(ours, &twice).unwrap();
                let known =
                    other::DynamicMessage::decode(theirs.clone(), [bytes.as_slice(), &bytes].concat().as_slice());
                assert_eq!(read.encode_to_vec(), known.unwrap().encode_to_vec(), "{field:?}");
                assert_eq!(read.unknown_fields().collect::<Vec<_>>(), [0x1fff_ffff]);
                count += 1;
            }
        }
    }
    assert!(count > 15_000, "{count}");
}

/// Of any bytes, both say the same: the same message, or the same error.
#[test]
fn damaged_bytes_are_refused_as_by_the_pool() {
    let pool = pool();
    let theirs = pool.get_message_by_name("envoy.config.listener.v3.Listener").unwrap();
    let ours = MessageDescriptor::find(theirs.full_name()).unwrap();
    let good = [
        b"\x0a\x03abc\x12\x09\x0a\x07\x12\x03::1\x18\x50\x1a\x06\x1a\x04\x0a\x02\x08\x01".as_slice(),
        b"\x22\x14\x0a\x12\x0a\x01a\x12\x0d\x0a\x0b\x0a\x01b\x12\x06\x2a\x04\x0a\x02\x08\x01",
    ]
    .concat();
    for at in 0..good.len() {
        for byte in 0..=u8::MAX {
            let mut bytes = good.clone();
            bytes[at] = byte;
            // Groups never come so far.
            if crate::bounds::scan(&ours, &bytes).is_err() {
                continue;
            }
            let our_end = DynamicMessage::decode(ours, &bytes);
            let their_end = other::DynamicMessage::decode(theirs.clone(), bytes.as_slice());
            match (our_end, their_end) {
                (Ok(_), Ok(theirs)) if has_unknown(&theirs) => {}
                (Ok(ours), Ok(theirs)) => assert_eq!(ours.encode_to_vec(), theirs.encode_to_vec(), "{bytes:x?}"),
                (Err(ours), Err(theirs)) => assert_eq!(ours.to_string(), theirs.to_string(), "{bytes:x?}"),
                (ours, theirs) => panic!("{bytes:x?}: {ours:?}, {theirs:?}"),
            }
        }
    }
}

fn has_unknown(message: &other::DynamicMessage) -> bool {
    fn any(value: &other::Value) -> bool {
        match value {
            other::Value::Message(message) => has_unknown(message),
            other::Value::List(items) => items.iter().any(any),
            other::Value::Map(entries) => entries.values().any(any),
            _ => false,
        }
    }
    message.unknown_fields().next().is_some() || message.fields().any(|(_, value)| any(value))
}

/// The default, a small value, a large one.
fn value(field: &other::FieldDescriptor, rank: usize) -> other::Value {
    let kind = field.kind();
    match &kind {
        other::Kind::Message(entry) if field.is_map() => {
            let key = match scalar(&entry.map_entry_key_field().kind(), rank) {
                other::Value::Bool(key) => other::MapKey::Bool(key),
                other::Value::I32(key) => other::MapKey::I32(key),
                other::Value::I64(key) => other::MapKey::I64(key),
                other::Value::U32(key) => other::MapKey::U32(key),
                other::Value::U64(key) => other::MapKey::U64(key),
                other::Value::String(key) => other::MapKey::String(key),
                value => panic!("{value:?} as a key"),
            };
            other::Value::Map([(key, scalar(&entry.map_entry_value_field().kind(), rank))].into())
        }
        kind if field.is_list() => other::Value::List((0..rank).map(|rank| scalar(kind, rank)).collect()),
        kind => scalar(kind, rank),
    }
}

fn scalar(kind: &other::Kind, rank: usize) -> other::Value {
    use other::{Kind, Value};
    match kind {
        Kind::Bool => Value::Bool(rank > 0),
        Kind::Bytes => Value::Bytes(vec![0xff; rank * 100].into()),
        Kind::Double => Value::F64([0.0, 0.1, -f64::MAX][rank]),
        Kind::Enum(values) => Value::EnumNumber([0, 1, values.values().last().unwrap().number()][rank]),
        Kind::Fixed32 | Kind::Uint32 => Value::U32([0, 1, u32::MAX][rank]),
        Kind::Fixed64 | Kind::Uint64 => Value::U64([0, 1, u64::MAX][rank]),
        Kind::Float => Value::F32([0.0, 0.1, -f32::MAX][rank]),
        Kind::Int32 | Kind::Sfixed32 | Kind::Sint32 => Value::I32([0, 1, i32::MIN][rank]),
        Kind::Int64 | Kind::Sfixed64 | Kind::Sint64 => Value::I64([0, 1, i64::MIN][rank]),
        Kind::Message(message) => Value::Message(other::DynamicMessage::new(message.clone())),
        Kind::String => Value::String("é".repeat(rank * 100)),
    }
}
