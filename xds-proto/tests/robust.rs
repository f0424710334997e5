//! Hostile input: random text, trees and bytes never panic, and bombs stay small.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use outrigger_xds_proto::envoy::envoy::config::bootstrap::v3::Bootstrap;
use outrigger_xds_proto::envoy::envoy::config::listener::v3::Listener;
use outrigger_xds_proto::envoy::google::protobuf::Any;
use outrigger_xds_proto::json::{self, FieldNames, ParseError};
use outrigger_xds_proto::{any, bounds, descriptor, support};
use proptest::prelude::*;
use serde_json::{Map, Value};

const GOOD: &str = include_str!("bootstrap.yaml");

/// Names that lead somewhere, and one that does not.
const NAMES: [&str; 14] = [
    "@type",
    "static_resources",
    "listeners",
    "clusters",
    "filterChains",
    "filters",
    "typed_config",
    "name",
    "metadata",
    "filter_metadata",
    "connect_timeout",
    "load_assignment",
    "value",
    "naem",
];

const TEXTS: [&str; 7] = [
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/google.protobuf.Duration",
    "type.googleapis.com/xds.type.v3.TypedStruct",
    "type.googleapis.com/google.protobuf.Any",
    "1.5s",
    "EDS",
    "-9999999999999999999999",
];

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(&TEXTS).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(&NAMES), inner), 0..4).prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
            }),
        ]
    })
}

/// What is read can be written and read again; what is refused says where.
fn hold(result: Result<Bootstrap, ParseError>) {
    match result {
        Ok(bootstrap) => {
            let written = json::to_json(&bootstrap);
            assert_eq!(json::from_value::<Bootstrap>(&written), Ok(bootstrap.clone()), "{written}");
            support::walk_message(&bootstrap, "").unwrap();
        }
        Err(error) => {
            let rejections = error.rejections();
            assert!(!rejections.is_empty() && rejections.len() <= json::MAX_REJECTIONS);
            assert!(rejections.iter().all(|rejection| !rejection.reason.is_empty()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn random_trees_are_read_or_refused(tree in tree()) {
        hold(json::from_value(&tree));
        hold(json::from_json(&tree.to_string()));
        hold(json::from_yaml(&tree.to_string()));
    }

    #[test]
    fn random_text_is_read_or_refused(text in ".{0,200}") {
        hold(json::from_yaml(&text));
        hold(json::from_json(&text));
    }

    #[test]
    fn a_damaged_bootstrap_is_read_or_refused(at in 0..GOOD.len(), length in 0_usize..20, put in "[\\[\\]{}:,&*!|>'\"a-c0-9\n -]{0,6}") {
        let end = (at + length).min(GOOD.len());
        hold(json::from_yaml(&format!("{}{put}{}", &GOOD[..at], &GOOD[end..])));
    }

    #[test]
    fn random_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for name in ["envoy.config.listener.v3.Listener", "envoy.config.rbac.v3.Permission", "google.protobuf.Struct"] {
            let _ = json::to_json_bytes(name, &bytes, FieldNames::Proto);
            let _ = support::walk_bytes(name, &bytes, "");
        }
        let _ = any::decode::<Listener>(&bytes);
        for url in TEXTS {
            let any = Any { type_url: url.into(), value: bytes.clone() };
            json::any_to_json(&any);
            let _ = any::unpack_dynamic(&any);
        }
    }

    #[test]
    fn damaged_bytes_agree_with_the_decoder(at in 0_usize..4000, byte in any::<u8>()) {
        let good: Bootstrap = json::from_yaml(GOOD).unwrap();
        let mut bytes = prost::Message::encode_to_vec(&good);
        let at = at % bytes.len();
        bytes[at] = byte;
        let descriptor = descriptor::message("envoy.config.bootstrap.v3.Bootstrap").unwrap();
        // What the decoder takes, the scan takes, except for groups in fields that nobody knows.
        let decoded: Result<Bootstrap, _> = prost::Message::decode(bytes.as_slice());
        if decoded.is_ok() {
            let scanned = bounds::scan(&descriptor, &bytes);
            prop_assert!(
                matches!(scanned, Ok(()) | Err(bounds::Excess::Malformed { reason: "an unknown wire type", .. })),
                "{scanned:?}"
            );
        }
        if let Ok(bootstrap) = any::decode::<Bootstrap>(&bytes) {
            json::to_json(&bootstrap);
            support::walk_message(&bootstrap, "").unwrap();
        }
    }
}

#[test]
fn a_billion_laughs_are_refused() {
    let mut text = String::from("node: &a0 { id: x }\n");
    let mut last = String::from("*a0");
    for level in 1..30 {
        text.push_str(&format!("k{level}: &a{level} [{last}, {last}, {last}, {last}]\n"));
        last = format!("*a{level}");
    }
    let error = json::from_yaml::<Bootstrap>(&text).unwrap_err();
    assert!(matches!(error, ParseError::Syntax(_)), "{error}");
}

#[test]
fn wire_bombs_are_refused_before_they_grow() {
    // Two bytes each, some hundred in memory.
    let empties = [0x1a, 0].repeat(3_000_000);
    assert!(any::decode::<Listener>(&empties).is_err());
    assert!(json::to_json_bytes("envoy.config.listener.v3.Listener", &empties, FieldNames::Proto).is_err());
    // A length of one GiB, and nothing behind it.
    assert!(any::decode::<Listener>(&[0x1a, 0x80, 0x80, 0x80, 0x80, 0x04]).is_err());
    let long = vec![0; bounds::MAX_BYTES + 1];
    let error = any::decode::<Listener>(&long).unwrap_err().to_string();
    assert!(error.contains("at most"), "{error}");
}

#[test]
fn a_chain_of_anys_is_written_to_a_bounded_depth() {
    let mut any = Any::default();
    for _ in 0..3 * bounds::MAX_ANY_DEPTH {
        any = any::pack(&any);
    }
    let mut depth = 0;
    let mut at = &json::any_to_json(&any);
    while at["value"].is_object() {
        at = &at["value"];
        depth += 1;
    }
    assert_eq!(depth, bounds::MAX_ANY_DEPTH);
    assert!(at["value"].is_string());
}
