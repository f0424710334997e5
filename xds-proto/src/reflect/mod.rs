//! Messages of a type known at run time.
//!
//! **Purpose.** What works by name (JSON, the support table, limits) walks descriptors and messages of any type.
//! **Shape.** [`MessageDescriptor`], [`FieldDescriptor`] and [`EnumDescriptor`] are indices into tables that `build.rs`
//! makes of all descriptors and that are embedded: nothing is loaded, nothing allocated. [`DynamicMessage`] holds a
//! [`Value`] for each field that is set. Names and meaning are those of the crate prost-reflect, whose pool of the
//! same descriptors takes 14 MiB and 13 ms.
//! **Limits.** No extensions, groups or defaults of proto2; unknown fields are known by number only and are not
//! written again.
//! **Source.** protobuf.dev, "Encoding"; `google/protobuf/descriptor.proto`.
//! **Tests.** `tests.rs`: every descriptor and every field's encoding against prost-reflect.

mod descriptor;
mod message;
mod table;
#[cfg(test)]
mod tests;
mod value;
mod wire;

pub use descriptor::{EnumDescriptor, EnumValueDescriptor, FieldDescriptor, Kind, MessageDescriptor};
pub use message::DynamicMessage;
pub use value::{MapKey, Value};
