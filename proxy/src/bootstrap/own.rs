//! The addresses of the workload, in the node's metadata.
//!
//! **Shape.** `outrigger.capture.addresses`, or `INSTANCE_IPS` as Istio's agents write it: a list with commas. What is no
//! address in it (a variable that nobody expanded) is left out: without addresses a proxy that leaves watches arrivals alone.

use std::net::IpAddr;

use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};

/// The addresses that `metadata` tells.
pub(super) fn addresses(metadata: Option<&Struct>) -> Vec<IpAddr> {
    let Some(metadata) = metadata else { return Vec::new() };
    let ours = within(metadata, "outrigger").and_then(|ours| within(ours, "capture"));
    let told = ours.and_then(|capture| text(capture, "addresses")).or_else(|| text(metadata, "INSTANCE_IPS"));
    told.unwrap_or_default().split(',').filter_map(|one| one.trim().parse().ok()).collect()
}

fn field<'a>(fields: &'a Struct, name: &str) -> Option<&'a Kind> {
    fields.fields.get(name).and_then(|Value { kind }| kind.as_ref())
}

fn within<'a>(fields: &'a Struct, name: &str) -> Option<&'a Struct> {
    match field(fields, name) {
        Some(Kind::StructValue(within)) => Some(within),
        _ => None,
    }
}

fn text<'a>(fields: &'a Struct, name: &str) -> Option<&'a str> {
    match field(fields, name) {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}
