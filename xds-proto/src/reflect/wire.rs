//! The wire form of a message. Reading leans on prost's functions of the same kinds, so errors are worded as those of
//! the generated types.

use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

use super::descriptor::{FieldDescriptor, Kind, MessageDescriptor};
use super::message::DynamicMessage;
use super::value::{MapKey, Value};

impl Message for DynamicMessage {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        for (field, value) in self.fields() {
            let number = field.number();
            match value {
                Value::List(items) if field.is_packed() => {
                    put_key(number, WireType::LengthDelimited, buf);
                    encoding::encode_varint(packed_len(field.kind(), items) as u64, buf);
                    items.iter().for_each(|item| Content::of(field.kind(), item).put(buf));
                }
                Value::List(items) => items.iter().for_each(|item| put(number, field.kind(), item, buf)),
                Value::Map(entries) => {
                    let Kind::Message(entry) = field.kind() else { continue };
                    for (key, value) in entries {
                        put(number, field.kind(), &entry_message(entry, key, value), buf);
                    }
                }
                value => put(number, field.kind(), value, buf),
            }
        }
    }

    fn encoded_len(&self) -> usize {
        let field_len = |(field, value): (FieldDescriptor, &Value)| {
            let number = field.number();
            let one = |value: &Value| encoding::key_len(number) + Content::of(field.kind(), value).len();
            match value {
                Value::List(items) if field.is_packed() => {
                    let length = packed_len(field.kind(), items);
                    encoding::key_len(number) + encoding::encoded_len_varint(length as u64) + length
                }
                Value::List(items) => items.iter().map(one).sum(),
                Value::Map(entries) => {
                    let Kind::Message(entry) = field.kind() else { return 0 };
                    entries.iter().map(|(key, value)| one(&entry_message(entry, key, value))).sum()
                }
                value => one(value),
            }
        };
        self.fields().map(field_len).sum()
    }

    fn merge_field(
        &mut self,
        number: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let Some(field) = self.descriptor().get_field(number) else {
            encoding::skip_field(wire_type, number, buf, ctx)?;
            self.add_unknown(number);
            return Ok(());
        };
        let kind = field.kind();
        match self.slot(&field) {
            Value::List(items) => merge_item(items, kind, wire_type, buf, ctx),
            Value::Map(entries) => {
                let Kind::Message(entry) = kind else { return Ok(()) };
                let mut read = DynamicMessage::new(entry);
                encoding::message::merge(wire_type, &mut read, buf, ctx)?;
                let value = read.take(&entry.map_entry_value_field());
                if let Some(key) = MapKey::new(read.take(&entry.map_entry_key_field())) {
                    entries.insert(key, value);
                }
                Ok(())
            }
            value => merge(value, kind, wire_type, buf, ctx),
        }
    }

    fn clear(&mut self) {
        self.clear_fields();
    }
}

/// A value as it stands behind its key.
enum Content<'a> {
    Eight([u8; 8]),
    Four([u8; 4]),
    Message(&'a DynamicMessage),
    Text(&'a [u8]),
    Varint(u64),
}

impl<'a> Content<'a> {
    fn of(kind: Kind, value: &'a Value) -> Self {
        match (kind, value) {
            (Kind::Sfixed32, Value::I32(value)) => Self::Four(value.to_le_bytes()),
            (Kind::Sfixed64, Value::I64(value)) => Self::Eight(value.to_le_bytes()),
            (Kind::Fixed32, Value::U32(value)) => Self::Four(value.to_le_bytes()),
            (Kind::Fixed64, Value::U64(value)) => Self::Eight(value.to_le_bytes()),
            (Kind::Sint32, Value::I32(value)) => Self::Varint(zigzag(i64::from(*value))),
            (Kind::Sint64, Value::I64(value)) => Self::Varint(zigzag(*value)),
            (_, Value::Bool(value)) => Self::Varint(u64::from(*value)),
            (_, Value::Bytes(value)) => Self::Text(value),
            (_, Value::EnumNumber(value) | Value::I32(value)) => Self::Varint(i64::from(*value).cast_unsigned()),
            (_, Value::F32(value)) => Self::Four(value.to_le_bytes()),
            (_, Value::F64(value)) => Self::Eight(value.to_le_bytes()),
            (_, Value::I64(value)) => Self::Varint(value.cast_unsigned()),
            (_, Value::Message(message)) => Self::Message(message),
            (_, Value::String(value)) => Self::Text(value.as_bytes()),
            (_, Value::U32(value)) => Self::Varint(u64::from(*value)),
            (_, Value::U64(value)) => Self::Varint(*value),
            // Neither stands inside another one without a message between.
            (_, Value::List(_) | Value::Map(_)) => Self::Text(&[]),
        }
    }

    fn wire_type(&self) -> WireType {
        match self {
            Self::Eight(_) => WireType::SixtyFourBit,
            Self::Four(_) => WireType::ThirtyTwoBit,
            Self::Message(_) | Self::Text(_) => WireType::LengthDelimited,
            Self::Varint(_) => WireType::Varint,
        }
    }

    fn len(&self) -> usize {
        let with_length = |length: usize| encoding::encoded_len_varint(length as u64) + length;
        match self {
            Self::Eight(_) => 8,
            Self::Four(_) => 4,
            Self::Message(message) => with_length(message.encoded_len()),
            Self::Text(bytes) => with_length(bytes.len()),
            Self::Varint(number) => encoding::encoded_len_varint(*number),
        }
    }

    fn put(&self, buf: &mut impl BufMut) {
        match self {
            Self::Eight(bytes) => buf.put_slice(bytes),
            Self::Four(bytes) => buf.put_slice(bytes),
            Self::Message(message) => {
                encoding::encode_varint(message.encoded_len() as u64, buf);
                message.encode_raw(buf);
            }
            Self::Text(bytes) => {
                encoding::encode_varint(bytes.len() as u64, buf);
                buf.put_slice(bytes);
            }
            Self::Varint(number) => encoding::encode_varint(*number, buf),
        }
    }
}

fn put(number: u32, kind: Kind, value: &Value, buf: &mut impl BufMut) {
    let content = Content::of(kind, value);
    put_key(number, content.wire_type(), buf);
    content.put(buf);
}

fn put_key(number: u32, wire_type: WireType, buf: &mut impl BufMut) {
    encoding::encode_key(number, wire_type, buf);
}

fn packed_len(kind: Kind, items: &[Value]) -> usize {
    items.iter().map(|item| Content::of(kind, item).len()).sum()
}

fn entry_message(entry: MessageDescriptor, key: &MapKey, value: &Value) -> Value {
    let mut message = DynamicMessage::new(entry);
    message.set_field(&entry.map_entry_key_field(), key.to_value());
    message.set_field(&entry.map_entry_value_field(), value.clone());
    Value::Message(message)
}

/// `0, -1, 1, -2` → `0, 1, 2, 3`.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// Reads one item of a list, or all of a packed one.
fn merge_item(
    items: &mut Vec<Value>,
    kind: Kind,
    wire_type: WireType,
    buf: &mut impl Buf,
    ctx: DecodeContext,
) -> Result<(), DecodeError> {
    let Some(unpacked) = packable(kind).filter(|_| wire_type == WireType::LengthDelimited) else {
        let mut item = Value::default_item(kind);
        merge(&mut item, kind, wire_type, buf, ctx)?;
        items.push(item);
        return Ok(());
    };
    encoding::merge_loop(items, buf, ctx, |items, buf, ctx| {
        let mut item = Value::default_item(kind);
        merge(&mut item, kind, unpacked, buf, ctx)?;
        items.push(item);
        Ok(())
    })
}

/// How an item of a packed list is encoded; none for kinds that are never packed.
fn packable(kind: Kind) -> Option<WireType> {
    match kind {
        Kind::Bytes | Kind::Message(_) | Kind::String => None,
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Some(WireType::SixtyFourBit),
        Kind::Fixed32 | Kind::Float | Kind::Sfixed32 => Some(WireType::ThirtyTwoBit),
        Kind::Bool
        | Kind::Enum(_)
        | Kind::Int32
        | Kind::Int64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Uint32
        | Kind::Uint64 => Some(WireType::Varint),
    }
}

/// Reads a value of `kind` over the one that stands there.
fn merge(
    value: &mut Value,
    kind: Kind,
    wire_type: WireType,
    buf: &mut impl Buf,
    ctx: DecodeContext,
) -> Result<(), DecodeError> {
    match (value, kind) {
        (Value::Message(message), _) => encoding::message::merge(wire_type, message, buf, ctx),
        (Value::Bool(value), _) => encoding::bool::merge(wire_type, value, buf, ctx),
        (Value::Bytes(value), _) => encoding::bytes::merge(wire_type, value, buf, ctx),
        (Value::EnumNumber(value), _) => encoding::int32::merge(wire_type, value, buf, ctx),
        (Value::F32(value), _) => encoding::float::merge(wire_type, value, buf, ctx),
        (Value::F64(value), _) => encoding::double::merge(wire_type, value, buf, ctx),
        (Value::String(value), _) => encoding::string::merge(wire_type, value, buf, ctx),
        (Value::I32(value), Kind::Sfixed32) => encoding::sfixed32::merge(wire_type, value, buf, ctx),
        (Value::I32(value), Kind::Sint32) => encoding::sint32::merge(wire_type, value, buf, ctx),
        (Value::I32(value), _) => encoding::int32::merge(wire_type, value, buf, ctx),
        (Value::I64(value), Kind::Sfixed64) => encoding::sfixed64::merge(wire_type, value, buf, ctx),
        (Value::I64(value), Kind::Sint64) => encoding::sint64::merge(wire_type, value, buf, ctx),
        (Value::I64(value), _) => encoding::int64::merge(wire_type, value, buf, ctx),
        (Value::U32(value), Kind::Fixed32) => encoding::fixed32::merge(wire_type, value, buf, ctx),
        (Value::U32(value), _) => encoding::uint32::merge(wire_type, value, buf, ctx),
        (Value::U64(value), Kind::Fixed64) => encoding::fixed64::merge(wire_type, value, buf, ctx),
        (Value::U64(value), _) => encoding::uint64::merge(wire_type, value, buf, ctx),
        // The callers read the items of these one by one.
        (Value::List(_) | Value::Map(_), _) => encoding::skip_field(wire_type, 0, buf, ctx),
    }
}
