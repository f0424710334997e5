//! Writes the tables that `src/reflect/table.rs` reads; that file has their layout.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The two files to embed.
pub(crate) struct Tables {
    /// Records of little-endian words.
    pub(crate) words: Vec<u8>,
    /// What the records name.
    pub(crate) names: String,
}

/// What a message becomes: its definition, and whether its file has proto3's rules.
struct Found<'a> {
    message: &'a DescriptorProto,
    is_proto3: bool,
}

/// By full name, hence sorted: the place in the order is the index.
#[derive(Default)]
struct Types<'a> {
    messages: BTreeMap<String, Found<'a>>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
}

/// Lays out all messages and enums of `set`.
pub(crate) fn build(set: &FileDescriptorSet) -> Result<Tables, Box<dyn Error>> {
    let mut types = Types::default();
    for file in &set.file {
        let is_proto3 = file.syntax() == "proto3";
        for message in &file.message_type {
            types.add(file.package(), message, is_proto3);
        }
        for values in &file.enum_type {
            types.enums.insert(join(file.package(), values.name()), values);
        }
    }
    let mut names = Names::default();
    let (mut messages, mut fields) = (Vec::new(), Vec::new());
    let indices = types.indices();
    for (full_name, found) in &types.messages {
        let is_map_entry = found.message.options.as_ref().is_some_and(|options| options.map_entry());
        let mut sorted: Vec<_> = found.message.field.iter().collect();
        sorted.sort_by_key(|field| field.number());
        messages.extend([
            names.place(full_name)?,
            word(fields.len() / 4)?,
            word(sorted.len())? << 1 | u32::from(is_map_entry),
        ]);
        for field in sorted {
            fields.extend(field_record(field, found.is_proto3, &indices, &mut names)?);
        }
    }
    let (mut enums, mut values) = (Vec::new(), Vec::new());
    for (full_name, found) in &types.enums {
        let mut sorted: Vec<_> = found.value.iter().collect();
        sorted.sort_by_key(|value| value.number());
        enums.extend([names.place(full_name)?, word(values.len() / 2)?, word(sorted.len())?]);
        for value in sorted {
            values.extend([names.place(value.name())?, value.number().cast_unsigned()]);
        }
    }
    let head = [word(types.messages.len())?, word(fields.len() / 4)?, word(types.enums.len())?];
    let words = [head.as_slice(), &messages, &fields, &enums, &values].concat();
    Ok(Tables { words: words.into_iter().flat_map(u32::to_le_bytes).collect(), names: names.text })
}

impl<'a> Types<'a> {
    fn add(&mut self, scope: &str, message: &'a DescriptorProto, is_proto3: bool) {
        let full_name = join(scope, message.name());
        for inner in &message.nested_type {
            self.add(&full_name, inner, is_proto3);
        }
        for values in &message.enum_type {
            self.enums.insert(join(&full_name, values.name()), values);
        }
        self.messages.insert(full_name, Found { message, is_proto3 });
    }

    fn indices(&self) -> HashMap<String, usize> {
        let messages = self.messages.keys().cloned().enumerate();
        let enums = self.enums.keys().cloned().enumerate();
        messages.chain(enums).map(|(index, name)| (name, index)).collect()
    }
}

/// Each name once, in the order in which they are first used: what is read together lies together.
#[derive(Default)]
struct Names {
    text: String,
    places: HashMap<String, u32>,
}

impl Names {
    /// Where `name` stands: its offset above its length, eight bits.
    fn place(&mut self, name: &str) -> Result<u32, Box<dyn Error>> {
        if let Some(place) = self.places.get(name) {
            return Ok(*place);
        }
        let length = u8::try_from(name.len()).map_err(|_| format!("{name}: longer than 255 bytes"))?;
        let offset = word(self.text.len())?;
        if offset >= 1 << 24 {
            return Err("more than 16 MiB of names".into());
        }
        self.text.push_str(name);
        let place = offset << 8 | u32::from(length);
        self.places.insert(name.to_owned(), place);
        Ok(place)
    }
}

fn field_record(
    field: &FieldDescriptorProto,
    is_proto3: bool,
    indices: &HashMap<String, usize>,
    names: &mut Names,
) -> Result<[u32; 4], Box<dyn Error>> {
    let kind = field.r#type();
    if kind == Type::Group {
        return Err(format!("{}: a group", field.name()).into());
    }
    let is_list = field.label() == Label::Repeated;
    let is_message = kind == Type::Message;
    let is_packable = !matches!(kind, Type::Message | Type::String | Type::Bytes);
    let packed = field.options.as_ref().and_then(|options| options.packed).unwrap_or(is_proto3);
    let has_presence = field.oneof_index.is_some() || (!is_list && (is_message || !is_proto3));
    let index = match field.type_name().strip_prefix('.') {
        None => 0,
        Some(name) => *indices.get(name).ok_or_else(|| format!("{}: {name} is not in the set", field.name()))?,
    };
    // Nought is none.
    let oneof = field.oneof_index.map_or(Ok(0), |index| u8::try_from(index + 1))?;
    let shape = u32::from(u8::try_from(kind as i32)?)
        | u32::from(is_list) << 5
        | u32::from(is_list && is_packable && packed) << 6
        | u32::from(has_presence) << 7
        | u32::from(oneof) << 8
        | u32::from(u16::try_from(index)?) << 16;
    Ok([names.place(field.name())?, names.place(field.json_name())?, field.number().cast_unsigned(), shape])
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn word(number: usize) -> Result<u32, std::num::TryFromIntError> {
    u32::try_from(number)
}
