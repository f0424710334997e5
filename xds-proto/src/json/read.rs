//! A document tree → a message, walking the tree against the descriptor.
//!
//! Goes on after a mistake, so that one pass finds all of them.

use super::{Rejection, wellknown};
use crate::document::{Node, shorten};
use crate::reflect::{DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

/// Most rejections reported for one document.
pub const MAX_REJECTIONS: usize = 100;

pub(super) fn message(descriptor: &MessageDescriptor, node: &Node) -> Result<DynamicMessage, Vec<Rejection>> {
    let mut reader = Reader::default();
    let message = reader.message(descriptor, node);
    match message {
        Some(message) if reader.rejections.is_empty() => Ok(message),
        _ => Err(reader.rejections),
    }
}

/// The place reached so far, and what was refused on the way. A method that returns none has refused.
#[derive(Default)]
pub(super) struct Reader {
    path: String,
    rejections: Vec<Rejection>,
}

impl Reader {
    pub(super) fn refuse<T>(&mut self, reason: impl Into<String>) -> Option<T> {
        if self.rejections.len() < MAX_REJECTIONS {
            self.rejections.push(Rejection { path: self.path.clone(), reason: reason.into() });
        }
        None
    }

    pub(super) fn expected<T>(&mut self, expected: &str, node: &Node) -> Option<T> {
        self.refuse(format!("expected {expected}, found {}", node.describe()))
    }

    /// Runs `step` one field deeper.
    pub(super) fn at_field<T>(&mut self, name: &str, step: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = step(self);
        self.path.truncate(length);
        result
    }

    fn at_part<T>(&mut self, part: &str, step: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(part);
        let result = step(self);
        self.path.truncate(length);
        result
    }

    pub(super) fn message(&mut self, descriptor: &MessageDescriptor, node: &Node) -> Option<DynamicMessage> {
        if let Some(read) = wellknown::reader(descriptor.full_name()) {
            return read(self, descriptor, node);
        }
        let Node::Map(entries) = node else {
            return self.expected(&format!("a mapping ({})", descriptor.full_name()), node);
        };
        self.fields(descriptor, entries.iter().map(|(name, node)| (name.as_str(), node)))
    }

    pub(super) fn fields<'a>(
        &mut self,
        descriptor: &MessageDescriptor,
        entries: impl Iterator<Item = (&'a str, &'a Node)>,
    ) -> Option<DynamicMessage> {
        let mut message = DynamicMessage::new(*descriptor);
        let mut given: Vec<FieldDescriptor> = Vec::new();
        let before = self.rejections.len();
        for (name, node) in entries {
            self.at_field(name, |reader| {
                let Some(field) = lookup(descriptor, name) else {
                    return reader.refuse::<()>(unknown_field(descriptor, name));
                };
                let value = reader.field(&field, node)?;
                reader.refuse_clash(&given, &field)?;
                message.set_field(&field, value);
                given.push(field);
                Some(())
            });
        }
        (self.rejections.len() == before).then_some(message)
    }

    /// A field may be given once, and one field of each oneof.
    fn refuse_clash(&mut self, given: &[FieldDescriptor], field: &FieldDescriptor) -> Option<()> {
        if given.contains(field) {
            return self.refuse("given twice, in two spellings");
        }
        let oneof = field.containing_oneof();
        let other = given
            .iter()
            .find(|other| oneof.is_some() && other.containing_oneof() == oneof)
            .map(|other| other.name().to_owned());
        match other {
            Some(other) => self.refuse(format!("{other} is given too; only one of them may be")),
            None => Some(()),
        }
    }

    /// None without a rejection: the field is null, hence unset.
    fn field(&mut self, field: &FieldDescriptor, node: &Node) -> Option<Value> {
        if matches!(node, Node::Null) && !takes_null(&field.kind(), field.is_list()) {
            return None;
        }
        if field.is_map() {
            return self.map(field, node);
        }
        if !field.is_list() {
            return self.value(&field.kind(), node);
        }
        let Node::List(items) = node else {
            return self.expected("a list", node);
        };
        let kind = field.kind();
        let mut values = Vec::with_capacity(items.len());
        let mut complete = true;
        for (index, item) in items.iter().enumerate() {
            match self.at_part(&format!("[{index}]"), |reader| reader.value(&kind, item)) {
                Some(value) => values.push(value),
                None => complete = false,
            }
        }
        complete.then_some(Value::List(values))
    }

    fn map(&mut self, field: &FieldDescriptor, node: &Node) -> Option<Value> {
        let Node::Map(entries) = node else {
            return self.expected("a mapping", node);
        };
        let Kind::Message(entry) = field.kind() else {
            return self.refuse("this map has no entry type");
        };
        let key_kind = entry.map_entry_key_field().kind();
        let value_kind = entry.map_entry_value_field().kind();
        let mut values = std::collections::HashMap::with_capacity(entries.len());
        let mut complete = true;
        for (key, node) in entries {
            let read = self.at_part(&format!("[{:?}]", shorten(key)), |reader| {
                let key = reader.map_key(&key_kind, key)?;
                Some((key, reader.value(&value_kind, node)?))
            });
            match read {
                Some((key, value)) => drop(values.insert(key, value)),
                None => complete = false,
            }
        }
        complete.then_some(Value::Map(values))
    }

    fn map_key(&mut self, kind: &Kind, key: &str) -> Option<MapKey> {
        let node = match (kind, key) {
            (Kind::Bool, "true") => Node::Bool(true),
            (Kind::Bool, "false") => Node::Bool(false),
            _ => Node::Text(key.to_owned()),
        };
        match self.value(kind, &node)? {
            Value::Bool(value) => Some(MapKey::Bool(value)),
            Value::I32(value) => Some(MapKey::I32(value)),
            Value::I64(value) => Some(MapKey::I64(value)),
            Value::U32(value) => Some(MapKey::U32(value)),
            Value::U64(value) => Some(MapKey::U64(value)),
            Value::String(value) => Some(MapKey::String(value)),
            _ => self.refuse("this map has no usable key type"),
        }
    }

    fn value(&mut self, kind: &Kind, node: &Node) -> Option<Value> {
        match kind {
            Kind::Message(descriptor) => self.message(descriptor, node).map(Value::Message),
            Kind::Enum(descriptor) => self.enumerator(descriptor, node).map(Value::EnumNumber),
            Kind::Bool => self.boolean(node).map(Value::Bool),
            Kind::String => self.text(node).map(|text| Value::String(text.to_owned())),
            Kind::Bytes => self.bytes(node).map(|bytes| Value::Bytes(bytes.into())),
            Kind::Double => self.float(node).map(Value::F64),
            Kind::Float => self.single(node).map(Value::F32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => self.integer(node).map(Value::I32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => self.integer(node).map(Value::I64),
            Kind::Uint32 | Kind::Fixed32 => self.integer(node).map(Value::U32),
            Kind::Uint64 | Kind::Fixed64 => self.integer(node).map(Value::U64),
        }
    }

    pub(super) fn boolean(&mut self, node: &Node) -> Option<bool> {
        match node {
            Node::Bool(value) => Some(*value),
            _ => self.expected("true or false", node),
        }
    }

    pub(super) fn text<'a>(&mut self, node: &'a Node) -> Option<&'a str> {
        match node {
            Node::Text(text) => Some(text),
            Node::Bool(_) | Node::Int(_) | Node::Float(_) => {
                self.refuse(format!("expected text, found {}; put it in quotes", node.describe()))
            }
            _ => self.expected("text", node),
        }
    }

    pub(super) fn bytes(&mut self, node: &Node) -> Option<Vec<u8>> {
        let text = self.text(node)?;
        match wellknown::decode_base64(text) {
            Some(bytes) => Some(bytes),
            None => self.refuse(format!("expected base64, found {}", node.describe())),
        }
    }

    pub(super) fn integer<T>(&mut self, node: &Node) -> Option<T>
    where
        T: TryFrom<i128> + Bounded,
    {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let number = match node {
            Node::Int(number) => Some(*number),
            #[allow(clippy::cast_possible_truncation, reason = "integral, and within 2^53")]
            Node::Float(number) if number.fract() == 0.0 && number.abs() <= EXACT => Some(*number as i128),
            Node::Text(text) => text.parse().ok().filter(|_| !text.starts_with('+')),
            _ => None,
        };
        let Some(number) = number else {
            return self.expected("a whole number", node);
        };
        match T::try_from(number) {
            Ok(value) => Some(value),
            Err(_) => self.refuse(format!("{number} is not in {}..={}", T::LEAST, T::MOST)),
        }
    }

    pub(super) fn float(&mut self, node: &Node) -> Option<f64> {
        let number = match node {
            #[allow(clippy::cast_precision_loss, reason = "a double field holds what a double can")]
            Node::Int(number) => Some(*number as f64),
            Node::Float(number) => Some(*number),
            Node::Text(text) => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if number.is_finite() => Some(number),
            Some(number) => self.refuse(format!("{number} is not a finite number")),
            None => self.expected("a number", node),
        }
    }

    pub(super) fn single(&mut self, node: &Node) -> Option<f32> {
        let number = self.float(node)?;
        #[allow(clippy::cast_possible_truncation, reason = "the range is looked at next")]
        let single = number as f32;
        if single.is_finite() {
            return Some(single);
        }
        self.refuse(format!("{number} is not in {:e}..={:e}", f32::MIN, f32::MAX))
    }

    fn enumerator(&mut self, descriptor: &EnumDescriptor, node: &Node) -> Option<i32> {
        if descriptor.full_name() == "google.protobuf.NullValue" && matches!(node, Node::Null) {
            return Some(0);
        }
        let found = match node {
            Node::Text(name) => descriptor.get_value_by_name(name),
            Node::Int(number) => i32::try_from(*number).ok().and_then(|number| descriptor.get_value(number)),
            _ => return self.expected("a name", node),
        };
        match found {
            Some(value) => Some(value.number()),
            None => {
                let names: Vec<_> = descriptor.values().map(|value| value.name().to_owned()).collect();
                self.refuse(format!("{} is not one of {}", node.describe(), names.join(", ")))
            }
        }
    }
}

/// The range of an integer type, for messages.
pub(super) trait Bounded {
    const LEAST: i128;
    const MOST: i128;
}

macro_rules! bounded {
    ($($integer:ty),*) => { $(
        impl Bounded for $integer {
            const LEAST: i128 = <$integer>::MIN as i128;
            const MOST: i128 = <$integer>::MAX as i128;
        }
    )* };
}
bounded!(i32, i64, u32, u64);

fn takes_null(kind: &Kind, is_list: bool) -> bool {
    match kind {
        Kind::Message(descriptor) => !is_list && descriptor.full_name() == "google.protobuf.Value",
        Kind::Enum(descriptor) => !is_list && descriptor.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn lookup(descriptor: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name))
}

fn unknown_field(descriptor: &MessageDescriptor, name: &str) -> String {
    let suggestion = if name == "@type" {
        "; this place takes the message itself, not an Any".to_owned()
    } else {
        match nearest(descriptor, name) {
            Some(near) => format!("; did you mean {near}?"),
            None => String::new(),
        }
    };
    format!("unknown field of {}{suggestion}", descriptor.full_name())
}

/// The field whose name is nearest to `name`, letter case and underscores aside.
fn nearest(descriptor: &MessageDescriptor, name: &str) -> Option<String> {
    const LONGEST: usize = 80;
    let fold = |name: &str| -> Vec<u8> {
        name.bytes().filter(|byte| *byte != b'_' && *byte != b'-').map(|byte| byte.to_ascii_lowercase()).collect()
    };
    let folded = fold(name);
    if folded.len() > LONGEST {
        return None;
    }
    let most = folded.len() / 4 + 1;
    descriptor
        .fields()
        .map(|field| (edit_distance(&folded, &fold(field.name())), field.name().to_owned()))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

/// How many bytes to insert, drop or replace to turn `a` into `b`.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
