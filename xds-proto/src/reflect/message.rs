//! A message as the values of its fields.

use std::borrow::Cow;

use prost::{DecodeError, Message};

use super::descriptor::{FieldDescriptor, MessageDescriptor};
use super::value::Value;

/// A message of any type.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicMessage {
    descriptor: MessageDescriptor,
    /// By number: few of a message's fields are set at a time.
    fields: Vec<(u32, Value)>,
    /// Numbers without a field, ascending, each as often as it came.
    unknown: Vec<u32>,
}

impl DynamicMessage {
    /// A message without fields.
    pub fn new(descriptor: MessageDescriptor) -> Self {
        Self { descriptor, fields: Vec::new(), unknown: Vec::new() }
    }

    /// Decodes a message. Bounded in depth only; see [`crate::bounds`].
    pub fn decode(descriptor: MessageDescriptor, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut message = Self::new(descriptor);
        message.merge(bytes)?;
        Ok(message)
    }

    /// Its type.
    pub fn descriptor(&self) -> MessageDescriptor {
        self.descriptor
    }

    /// The fields that are set, by number.
    pub fn fields(&self) -> impl Iterator<Item = (FieldDescriptor, &Value)> {
        self.fields.iter().filter_map(|(number, value)| {
            let field = self.descriptor.get_field(*number)?;
            (field.supports_presence() || !value.is_default()).then_some((field, value))
        })
    }

    /// The numbers of the fields that its type does not have.
    pub fn unknown_fields(&self) -> impl Iterator<Item = u32> {
        self.unknown.iter().copied()
    }

    /// The value of a field, its default when it is not set.
    pub fn get_field(&self, field: &FieldDescriptor) -> Cow<'_, Value> {
        match self.place(field.number()) {
            Ok(at) => Cow::Borrowed(&self.fields[at].1),
            Err(_) => Cow::Owned(Value::default_of(field)),
        }
    }

    /// As [`Self::get_field`]; none when its type has no such field.
    pub fn get_field_by_name(&self, name: &str) -> Option<Cow<'_, Value>> {
        self.descriptor.get_field_by_name(name).map(|field| self.get_field(&field))
    }

    /// As [`Self::get_field`]; none when its type has no such field.
    pub fn get_field_by_number(&self, number: u32) -> Option<Cow<'_, Value>> {
        self.descriptor.get_field(number).map(|field| self.get_field(&field))
    }

    /// Sets a field, and unsets the others of its oneof. The value is to be of the field's kind.
    pub fn set_field(&mut self, field: &FieldDescriptor, value: Value) {
        *self.slot(field) = value;
    }

    /// As [`Self::set_field`]; nothing happens when its type has no such field.
    pub fn set_field_by_name(&mut self, name: &str, value: Value) {
        if let Some(field) = self.descriptor.get_field_by_name(name) {
            self.set_field(&field, value);
        }
    }

    /// As [`Self::set_field`]; nothing happens when its type has no such field.
    pub fn set_field_by_number(&mut self, number: u32, value: Value) {
        if let Some(field) = self.descriptor.get_field(number) {
            self.set_field(&field, value);
        }
    }

    /// The same message as a generated type.
    pub fn transcode_to<T: Message + Default>(&self) -> Result<T, DecodeError> {
        T::decode(self.encode_to_vec().as_slice())
    }

    /// Adds the fields of a generated type.
    pub fn transcode_from(&mut self, message: &impl Message) -> Result<(), DecodeError> {
        self.merge(message.encode_to_vec().as_slice())
    }

    /// The value of a field, to be changed; its default when it was not set.
    pub(super) fn slot(&mut self, field: &FieldDescriptor) -> &mut Value {
        let number = field.number();
        if let Some(oneof) = field.containing_oneof() {
            let descriptor = self.descriptor;
            let is_other = |other: u32| {
                other != number && descriptor.get_field(other).and_then(|other| other.containing_oneof()) == Some(oneof)
            };
            self.fields.retain(|(other, _)| !is_other(*other));
        }
        let at = self.place(number).unwrap_or_else(|at| {
            self.fields.insert(at, (number, Value::default_of(field)));
            at
        });
        &mut self.fields[at].1
    }

    /// The value of a field, moved out; its default when it is not set.
    pub(super) fn take(&mut self, field: &FieldDescriptor) -> Value {
        match self.place(field.number()) {
            Ok(at) => self.fields.remove(at).1,
            Err(_) => Value::default_of(field),
        }
    }

    pub(super) fn add_unknown(&mut self, number: u32) {
        let at = self.unknown.partition_point(|other| *other <= number);
        self.unknown.insert(at, number);
    }

    pub(super) fn clear_fields(&mut self) {
        self.fields.clear();
        self.unknown.clear();
    }

    fn place(&self, number: u32) -> Result<usize, usize> {
        self.fields.binary_search_by_key(&number, |(number, _)| *number)
    }
}
