//! What an `Any` carries.
//!
//! **Purpose.** Pack and unpack by type, and read `TypedStruct`, the form in which a control plane sends a message
//! whose schema it does not have.
//! **Errors.** [`UnpackError`] names the type that was expected and the one that was found.
//! **Limits.** Each unpacking is bounded by [`crate::bounds`] before anything is allocated.
//! **Source.** `google/protobuf/any.proto`: the type name is what follows the last `/`, whatever stands before.
//! **Tests.** Below.

use prost::{Message, Name};
use prost_types as wkt;

use crate::bounds::{self, Excess};
use crate::descriptor;
use crate::document::shorten;
use crate::envoy::google::protobuf::Any;
use crate::json::{self, ParseError};
use crate::reflect::{DynamicMessage, MessageDescriptor};

const TYPED_STRUCTS: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

/// Why an `Any` does not give the message asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The content is not an encoded message, or too large a one.
    #[error("{type_name}: {reason}")]
    Content {
        /// The type it should be.
        type_name: String,
        /// Why it is refused.
        reason: Excess,
    },
    /// Well-formed bytes that hold a wrong value: text that is not UTF-8, a field of another type.
    #[error("{type_name}: {reason}")]
    Decode {
        /// The type it should be.
        type_name: String,
        /// What the decoder says.
        reason: String,
    },
    /// It carries another type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// The type asked for.
        expected: String,
        /// The type inside.
        found: String,
    },
    /// A `TypedStruct` whose value does not fit the type it names.
    #[error("{type_name} in a TypedStruct: {reason}")]
    TypedStruct {
        /// The type it names.
        type_name: String,
        /// Why the value does not fit.
        reason: ParseError,
    },
    /// No message of this name is known.
    #[error("type {type_name:?} is not known")]
    UnknownType {
        /// The name.
        type_name: String,
    },
    /// The type URL names no type.
    #[error("{url:?} is not a type URL such as type.googleapis.com/envoy.config.cluster.v3.Cluster")]
    Url {
        /// The URL, shortened.
        url: String,
    },
}

/// The message name in a type URL.
pub fn type_name(url: &str) -> Result<&str, UnpackError> {
    match url.rsplit_once('/') {
        Some((_, name)) if !name.is_empty() => Ok(name),
        _ => Err(UnpackError::Url { url: shorten(url) }),
    }
}

/// The type URL of a generated type, `type.googleapis.com/` and its name.
pub fn type_url<T: Name>() -> String {
    format!("type.googleapis.com/{}", T::full_name())
}

/// Packs a message.
pub fn pack<T: Name>(message: &T) -> Any {
    Any { type_url: type_url::<T>(), value: message.encode_to_vec() }
}

/// Packs a message as an `xds.type.v3.TypedStruct`: a reader that does not know its type can still show it, where a plain
/// [`pack`] makes Envoy's whole `/config_dump` fail.
pub fn pack_as_struct<T: Name>(message: &T) -> Any {
    let value = match json::to_json(message) {
        serde_json::Value::Object(fields) => {
            Some(wkt::Struct { fields: fields.into_iter().map(|(name, value)| (name, struct_value(value))).collect() })
        }
        _ => None,
    };
    let value = TypedStruct { type_url: type_url::<T>(), value }.encode_to_vec();
    Any { type_url: format!("type.googleapis.com/{}", TYPED_STRUCTS[1]), value }
}

/// Unpacks a message of the type `T`, also from a `TypedStruct` that stands for it.
pub fn unpack<T: Name + Default>(any: &Any) -> Result<T, UnpackError> {
    let found = type_name(&any.type_url)?;
    if found == T::full_name() {
        return decode(&any.value);
    }
    match typed_struct(any)? {
        Some(message) => {
            let found = message.descriptor();
            if found.full_name() != T::full_name() {
                return Err(UnpackError::Type { expected: T::full_name(), found: found.full_name().into() });
            }
            decode(&message.encode_to_vec())
        }
        None => Err(UnpackError::Type { expected: T::full_name(), found: shorten(found) }),
    }
}

/// Decodes a message of the type `T` within the limits of [`crate::bounds`].
pub fn decode<T: Name + Default>(bytes: &[u8]) -> Result<T, UnpackError> {
    let descriptor = descriptor::of::<T>();
    scan(&descriptor, bytes)?;
    T::decode(bytes).map_err(|error| UnpackError::Decode { type_name: T::full_name(), reason: error.to_string() })
}

/// As [`decode`], of a type known at run time.
pub fn decode_dynamic(descriptor: &MessageDescriptor, bytes: &[u8]) -> Result<DynamicMessage, UnpackError> {
    scan(descriptor, bytes)?;
    DynamicMessage::decode(*descriptor, bytes).map_err(|error| UnpackError::Decode {
        type_name: descriptor.full_name().to_owned(),
        reason: error.to_string(),
    })
}

/// Unpacks whatever known message `any` carries; a `TypedStruct` as the message it stands for, where that is known.
pub fn unpack_dynamic(any: &Any) -> Result<DynamicMessage, UnpackError> {
    if let Some(message) = typed_struct(any)? {
        return Ok(message);
    }
    let name = type_name(&any.type_url)?;
    let descriptor = descriptor::message(name).ok_or_else(|| UnpackError::UnknownType { type_name: shorten(name) })?;
    decode_dynamic(&descriptor, &any.value)
}

/// The type that `any` is about: the one a `TypedStruct` names, else its own.
pub fn content_type(any: &Any) -> Result<String, UnpackError> {
    let name = type_name(&any.type_url)?;
    if !TYPED_STRUCTS.contains(&name) {
        return Ok(name.to_owned());
    }
    let (url, _) = typed_struct_parts(name, &any.value)?;
    type_name(&url).map(str::to_owned)
}

/// The message that a `TypedStruct` stands for; none when `any` is not one.
fn typed_struct(any: &Any) -> Result<Option<DynamicMessage>, UnpackError> {
    let name = type_name(&any.type_url)?;
    if !TYPED_STRUCTS.contains(&name) {
        return Ok(None);
    }
    let (url, value) = typed_struct_parts(name, &any.value)?;
    let inner = type_name(&url)?;
    let descriptor =
        descriptor::message(inner).ok_or_else(|| UnpackError::UnknownType { type_name: shorten(inner) })?;
    json::from_struct(value, &descriptor)
        .map(Some)
        .map_err(|reason| UnpackError::TypedStruct { type_name: inner.to_owned(), reason })
}

/// Both spellings of `TypedStruct` have these fields.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<wkt::Struct>,
}

fn struct_value(value: serde_json::Value) -> wkt::Value {
    use serde_json::Value;
    use wkt::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(claim) => Kind::BoolValue(claim),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => {
            Kind::ListValue(wkt::ListValue { values: items.into_iter().map(struct_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(wkt::Struct {
            fields: fields.into_iter().map(|(name, value)| (name, struct_value(value))).collect(),
        }),
    };
    wkt::Value { kind: Some(kind) }
}

fn typed_struct_parts(name: &str, bytes: &[u8]) -> Result<(String, wkt::Struct), UnpackError> {
    let descriptor = descriptor::message(name).ok_or_else(|| UnpackError::UnknownType { type_name: name.into() })?;
    scan(&descriptor, bytes)?;
    let read = TypedStruct::decode(bytes)
        .map_err(|error| UnpackError::Decode { type_name: name.to_owned(), reason: error.to_string() })?;
    Ok((read.type_url, read.value.unwrap_or_default()))
}

fn scan(descriptor: &MessageDescriptor, bytes: &[u8]) -> Result<(), UnpackError> {
    bounds::scan(descriptor, bytes)
        .map_err(|reason| UnpackError::Content { type_name: descriptor.full_name().to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::envoy::config::cluster::v3::Cluster;
    use crate::envoy::envoy::config::listener::v3::Listener;
    use crate::envoy::envoy::extensions::filters::http::router::v3::Router;
    use crate::policy::v1::ClusterPolicy;

    fn typed_struct_any(yaml: &str) -> Any {
        let descriptor = descriptor::message("xds.type.v3.TypedStruct").unwrap();
        let message = json::parse_yaml(yaml, &descriptor).unwrap();
        Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".into(), value: message.encode_to_vec() }
    }

    #[test]
    fn what_is_packed_as_a_struct_is_read_back_as_it_was() {
        use crate::envoy::envoy::r#type::v3::TokenBucket;
        let bucket = TokenBucket {
            max_tokens: u32::MAX,
            tokens_per_fill: Some(crate::envoy::google::protobuf::UInt32Value { value: 50 }),
            fill_interval: Some(crate::envoy::google::protobuf::Duration { seconds: 1, nanos: 500_000_000 }),
        };
        let policy = ClusterPolicy { rule: "RateLimit shop/orders".into(), local_rate_limit: Some(bucket) };
        let any = pack_as_struct(&policy);
        assert_eq!(any.type_url, "type.googleapis.com/xds.type.v3.TypedStruct");
        assert_eq!(content_type(&any).as_deref(), Ok("outrigger.policy.v1.ClusterPolicy"));
        assert_eq!(unpack::<ClusterPolicy>(&any), Ok(policy));
    }

    #[test]
    fn packs_and_unpacks() {
        let cluster = Cluster { name: "orders".into(), ..Default::default() };
        let any = pack(&cluster);
        assert_eq!(any.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        assert_eq!(unpack::<Cluster>(&any), Ok(cluster));
        let policy = ClusterPolicy { rule: "RateLimit shop/orders".into(), ..Default::default() };
        assert_eq!(pack(&policy).type_url, "type.googleapis.com/outrigger.policy.v1.ClusterPolicy");
        assert_eq!(unpack::<ClusterPolicy>(&pack(&policy)), Ok(policy));
    }

    #[test]
    fn another_type_is_named() {
        let error = unpack::<Listener>(&pack(&Cluster::default())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected envoy.config.listener.v3.Listener, found envoy.config.cluster.v3.Cluster"
        );
        for url in ["", "envoy.config.cluster.v3.Cluster", "type.googleapis.com/"] {
            let any = Any { type_url: url.into(), value: Vec::new() };
            assert!(matches!(unpack::<Cluster>(&any), Err(UnpackError::Url { .. })), "{url:?}");
        }
    }

    #[test]
    fn broken_content_is_refused() {
        let any = Any { value: vec![0x0a, 0xff], ..pack(&Cluster::default()) };
        assert!(matches!(unpack::<Cluster>(&any), Err(UnpackError::Content { .. })));
        // A name that is not UTF-8.
        let any = Any { value: vec![0x0a, 1, 0xff], ..pack(&Cluster::default()) };
        assert!(matches!(unpack::<Cluster>(&any), Err(UnpackError::Decode { .. })));
    }

    #[test]
    fn a_typed_struct_stands_for_its_type() {
        let any = typed_struct_any(
            "type_url: type.googleapis.com/envoy.extensions.filters.http.router.v3.Router\n\
             value: { suppress_envoy_headers: true }",
        );
        assert!(unpack::<Router>(&any).unwrap().suppress_envoy_headers);
        assert!(matches!(unpack::<Cluster>(&any), Err(UnpackError::Type { .. })));
        assert_eq!(content_type(&any).unwrap(), "envoy.extensions.filters.http.router.v3.Router");
        let any = typed_struct_any(
            "type_url: type.googleapis.com/envoy.extensions.filters.http.router.v3.Router\n\
             value: { supress_envoy_headers: true }",
        );
        let error = unpack::<Router>(&any).unwrap_err().to_string();
        assert!(error.contains("did you mean suppress_envoy_headers?"), "{error}");
        let any = typed_struct_any("type_url: type.googleapis.com/stats.PluginConfig\nvalue: { a: 1 }");
        assert_eq!(unpack_dynamic(&any), Err(UnpackError::UnknownType { type_name: "stats.PluginConfig".into() }));
        assert_eq!(content_type(&any).unwrap(), "stats.PluginConfig");
    }
}
