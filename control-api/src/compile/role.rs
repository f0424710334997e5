//! Purpose: what a proxy says about itself in `node.metadata.outrigger`.
//! Errors: a role that does not parse refuses the stream, naming the field; a node without one gets
//! clusters and routes but no listeners.

use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind as StructKind;
use envoy_types::pb::google::protobuf::{Struct, Value as StructValue};
use serde_json::{Map, Value};

use crate::model::Problem;
use crate::model::cursor::{Cursor, Report};
use crate::model::object::{LABEL_RULE, SUBDOMAIN_RULE, is_dns_label, is_dns_subdomain};

const DEPTH_MAX: usize = 16;
/// Up to here a float tells whole numbers apart.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// What a proxy is there for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRole {
    /// The namespace in which short names are looked up.
    pub namespace: String,
    /// Where the application's own calls come in.
    pub outbound: Option<SocketAddr>,
    /// Where calls to the application come in.
    pub inbound: Option<Inbound>,
    /// The pod's traffic is captured.
    pub capture: Option<Capture>,
}

/// How the traffic of a pod is captured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capture {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// What its outbound listener depends on.
    pub outbound: CapturedOutbound,
    /// Port of captured connections to the pod.
    pub inbound_port: u16,
    /// Connections to the pod keep their source (TPROXY).
    pub is_transparent: bool,
}

/// How connections of a pod are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CapturedOutbound {
    /// The port that they are redirected to.
    pub port: u16,
    /// There is IPv6 in the pod.
    pub has_ipv6: bool,
    /// What leads to no service is passed on, not closed; `None`: as the mesh says.
    pub allows_any: Option<bool>,
}

/// The application behind a proxy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inbound {
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub app: SocketAddr,
    /// Its name.
    pub service: String,
}

impl Default for NodeRole {
    fn default() -> Self {
        Self { namespace: "default".to_owned(), outbound: None, inbound: None, capture: None }
    }
}

impl NodeRole {
    /// Reads the role from a node.
    pub fn parse(node: &Node) -> Result<Self, Vec<Problem>> {
        let written = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("outrigger"));
        let Some(written) = written else { return Ok(Self::default()) };
        let value = to_json(written, 0);
        let report = Report::new(None);
        report.name_object(format!("node {:?}", node.id));
        let role = walk_role(&Cursor::at(&value, "metadata.outrigger", &report));
        match role {
            Some(role) if report.is_clean() => Ok(role),
            _ => Err(report.into_problems()),
        }
    }
}

fn walk_role(at: &Cursor<'_>) -> Option<NodeRole> {
    let fields = at.fields(&["namespace", "serviceAccount", "outbound", "inbound", "capture"])?;
    // Who it is, for whoever reads the node; what it may do does not hang on its own word.
    let _ = fields.optional("serviceAccount").map(|at| at.text(is_dns_subdomain, SUBDOMAIN_RULE));
    let namespace = match fields.optional("namespace") {
        Some(at) => at.text(is_dns_label, LABEL_RULE),
        None => Some("default".to_owned()),
    };
    let outbound = fields.optional("outbound").and_then(|at| walk_address(&at));
    let inbound = fields.optional("inbound").and_then(|at| {
        let fields = at.fields(&["listen", "app", "service"])?;
        let listen = fields.required("listen").and_then(|at| walk_address(&at));
        let app = fields.required("app").and_then(|at| walk_address(&at));
        let service = fields.required("service")?.text(is_dns_label, LABEL_RULE)?;
        Some(Inbound { listen: listen?, app: app?, service })
    });
    let capture = fields.optional("capture").and_then(|at| walk_capture(&at));
    if capture.is_some() {
        for name in ["outbound", "inbound"].into_iter().filter(|name| fields.has(name)) {
            fields.refuse_field(name, "excludes capture: its listeners are made from what is captured");
        }
    }
    Some(NodeRole { namespace: namespace?, outbound, inbound, capture })
}

fn walk_capture(at: &Cursor<'_>) -> Option<Capture> {
    let fields = at.fields(&["addresses", "outboundPort", "inboundPort", "mode", "outboundPolicy"])?;
    let port = |name: &str, default: u16| match fields.optional(name) {
        Some(at) => at.port(),
        None => Some(default),
    };
    let (outbound, inbound) = (port("outboundPort", 15_001), port("inboundPort", 15_006));
    if outbound.is_some() && outbound == inbound {
        fields.refuse_field("inboundPort", "must not be outboundPort too");
    }
    let is_transparent = match fields.optional("mode") {
        Some(at) => at.choice(&[("redirect", false), ("tproxy", true)]),
        None => Some(false),
    };
    let allows_any = match fields.optional("outboundPolicy") {
        Some(at) => at.choice(&[("allow-any", Some(true)), ("registry-only", Some(false))]),
        None => Some(None),
    };
    let addresses = walk_pod_addresses(&fields.required("addresses")?)?;
    let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
    let outbound = CapturedOutbound { port: outbound?, has_ipv6, allows_any: allows_any? };
    Some(Capture { addresses, outbound, inbound_port: inbound?, is_transparent: is_transparent? })
}

/// As the kubelet writes `status.podIPs` into a variable: with commas.
fn walk_pod_addresses(at: &Cursor<'_>) -> Option<Vec<IpAddr>> {
    let parsed: Result<Vec<IpAddr>, _> = at.string()?.split(',').map(|one| one.trim().parse()).collect();
    if parsed.is_err() {
        at.refuse_with("must be the pod's IP addresses, separated by commas", "take them from status.podIPs");
    }
    parsed.ok()
}

fn walk_address(at: &Cursor<'_>) -> Option<SocketAddr> {
    let address = at.string()?.parse::<SocketAddr>().ok();
    if address.is_none() {
        at.refuse_with("must be an IP address and a port", "write it like \"127.0.0.1:15001\"");
    }
    address
}

/// A proto struct as JSON; deeper than any role could be, it is cut off.
fn to_json(value: &StructValue, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    match &value.kind {
        None | Some(StructKind::NullValue(_)) => Value::Null,
        // A proto struct knows no whole numbers.
        Some(StructKind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < WHOLE_MAX =>
        {
            #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
            Value::from(*number as i64)
        }
        Some(StructKind::NumberValue(number)) => serde_json::json!(number),
        Some(StructKind::StringValue(text)) => Value::String(text.clone()),
        Some(StructKind::BoolValue(claim)) => Value::Bool(*claim),
        Some(StructKind::StructValue(fields)) => Value::Object(to_map(fields, depth)),
        Some(StructKind::ListValue(list)) => {
            Value::Array(list.values.iter().map(|item| to_json(item, depth + 1)).collect())
        }
    }
}

fn to_map(fields: &Struct, depth: usize) -> Map<String, Value> {
    fields.fields.iter().map(|(key, value)| (key.clone(), to_json(value, depth + 1))).collect()
}
