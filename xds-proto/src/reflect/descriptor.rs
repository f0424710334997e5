//! Descriptors: an index into the tables each, with its questions.

use std::fmt;

use super::table;

/// A message type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MessageDescriptor {
    index: usize,
}

impl MessageDescriptor {
    /// The message type `full_name`.
    pub(crate) fn find(full_name: &str) -> Option<Self> {
        table::find_message(full_name).map(|index| Self { index })
    }

    /// All of them, by name.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..table::message_count()).map(|index| Self { index })
    }

    /// `envoy.config.cluster.v3.Cluster`.
    pub fn full_name(&self) -> &'static str {
        table::message_name(self.index)
    }

    /// Whether it stands for the entries of a map.
    pub fn is_map_entry(&self) -> bool {
        table::is_map_entry(self.index)
    }

    /// The fields, by number.
    pub fn fields(&self) -> impl Iterator<Item = FieldDescriptor> + use<> {
        let message = *self;
        table::fields(self.index).map(move |index| FieldDescriptor { message, index })
    }

    /// The field of this number.
    pub fn get_field(&self, number: u32) -> Option<FieldDescriptor> {
        let std::ops::Range { start: mut low, end: mut high } = table::fields(self.index);
        while low < high {
            let middle = low.midpoint(high);
            match table::field_number(middle).cmp(&number) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(FieldDescriptor { message: *self, index: middle }),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The field of this name.
    pub fn get_field_by_name(&self, name: &str) -> Option<FieldDescriptor> {
        self.fields().find(|field| field.name() == name)
    }

    /// The field of this name in JSON.
    pub fn get_field_by_json_name(&self, name: &str) -> Option<FieldDescriptor> {
        self.fields().find(|field| field.json_name() == name)
    }

    /// The key of a map entry.
    pub fn map_entry_key_field(&self) -> FieldDescriptor {
        self.get_field(1).expect("every map entry has a key")
    }

    /// The value of a map entry.
    pub fn map_entry_value_field(&self) -> FieldDescriptor {
        self.get_field(2).expect("every map entry has a value")
    }
}

impl fmt::Debug for MessageDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.full_name())
    }
}

/// A field of a message type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FieldDescriptor {
    message: MessageDescriptor,
    index: usize,
}

impl FieldDescriptor {
    /// As in the `.proto` file: `connect_timeout`.
    pub fn name(&self) -> &'static str {
        table::field_name(self.index)
    }

    /// As in JSON: `connectTimeout`.
    pub fn json_name(&self) -> &'static str {
        table::field_json_name(self.index)
    }

    /// `envoy.config.cluster.v3.Cluster.connect_timeout`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.message.full_name(), self.name())
    }

    /// Its number on the wire.
    pub fn number(&self) -> u32 {
        table::field_number(self.index)
    }

    /// The type of the message it is a field of.
    pub fn parent_message(&self) -> MessageDescriptor {
        self.message
    }

    /// What it holds; of a list, what an item is, of a map, the type of its entries.
    pub fn kind(&self) -> Kind {
        let shape = table::field_shape(self.index);
        Kind::new(shape.type_number(), shape.type_index())
    }

    /// Whether it is repeated and no map.
    pub fn is_list(&self) -> bool {
        table::field_shape(self.index).is_list() && !self.is_map()
    }

    /// Whether it is a map.
    pub fn is_map(&self) -> bool {
        table::field_shape(self.index).is_list()
            && matches!(self.kind(), Kind::Message(message) if message.is_map_entry())
    }

    /// Whether the items of a list follow each other without keys.
    pub fn is_packed(&self) -> bool {
        table::field_shape(self.index).is_packed()
    }

    /// Whether unset differs from set to the default.
    pub fn supports_presence(&self) -> bool {
        table::field_shape(self.index).has_presence()
    }

    /// The oneof it belongs to, by its place in the message.
    pub fn containing_oneof(&self) -> Option<u8> {
        table::field_shape(self.index).oneof().checked_sub(1)
    }
}

impl fmt::Debug for FieldDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full_name())
    }
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the types of protobuf, by their own names")]
pub enum Kind {
    Bool,
    Bytes,
    Double,
    Enum(EnumDescriptor),
    Fixed32,
    Fixed64,
    Float,
    Int32,
    Int64,
    Message(MessageDescriptor),
    Sfixed32,
    Sfixed64,
    Sint32,
    Sint64,
    String,
    Uint32,
    Uint64,
}

impl Kind {
    fn new(type_number: u32, index: usize) -> Self {
        match type_number {
            1 => Self::Double,
            2 => Self::Float,
            3 => Self::Int64,
            4 => Self::Uint64,
            5 => Self::Int32,
            6 => Self::Fixed64,
            7 => Self::Fixed32,
            8 => Self::Bool,
            9 => Self::String,
            11 => Self::Message(MessageDescriptor { index }),
            13 => Self::Uint32,
            14 => Self::Enum(EnumDescriptor { index }),
            15 => Self::Sfixed32,
            16 => Self::Sfixed64,
            17 => Self::Sint32,
            18 => Self::Sint64,
            // 12; the build script refuses a group, 10.
            _ => Self::Bytes,
        }
    }
}

/// An enum type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EnumDescriptor {
    index: usize,
}

impl EnumDescriptor {
    /// `envoy.config.cluster.v3.Cluster.LbPolicy`.
    pub fn full_name(&self) -> &'static str {
        table::enum_name(self.index)
    }

    /// The values, by number.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = EnumValueDescriptor> + use<> {
        table::values(self.index).map(|index| EnumValueDescriptor { index })
    }

    /// The first value of this number.
    pub fn get_value(&self, number: i32) -> Option<EnumValueDescriptor> {
        self.values().find(|value| value.number() == number)
    }

    /// The value of this name.
    pub fn get_value_by_name(&self, name: &str) -> Option<EnumValueDescriptor> {
        self.values().find(|value| value.name() == name)
    }
}

impl fmt::Debug for EnumDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.full_name())
    }
}

/// A value of an enum type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EnumValueDescriptor {
    index: usize,
}

impl EnumValueDescriptor {
    /// As in the `.proto` file: `ROUND_ROBIN`.
    pub fn name(&self) -> &'static str {
        table::value_name(self.index)
    }

    /// Its number on the wire.
    pub fn number(&self) -> i32 {
        table::value_number(self.index)
    }
}

impl fmt::Debug for EnumValueDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
