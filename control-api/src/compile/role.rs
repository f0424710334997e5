//! Purpose: what a proxy says about itself in `node.metadata.outrigger`.
//! Errors: a role that does not parse refuses the stream, naming the field; a node without one gets
//! clusters and routes but no listeners.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind as StructKind;
use envoy_types::pb::google::protobuf::{Struct, Value as StructValue};
use serde_json::{Map, Value};

use crate::model::Problem;
use crate::model::cursor::{Cursor, Report};
use crate::model::object::{LABEL_RULE, is_dns_label};

const DEPTH_MAX: usize = 16;

/// What a proxy is there for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeRole {
    /// The namespace in which short names are looked up.
    pub namespace: String,
    /// Where the application's own calls come in.
    pub outbound: Option<SocketAddr>,
    /// Where calls to the application come in.
    pub inbound: Option<Inbound>,
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
        Self { namespace: "default".to_owned(), outbound: None, inbound: None }
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
    let fields = at.fields(&["namespace", "outbound", "inbound"])?;
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
    Some(NodeRole { namespace: namespace?, outbound, inbound })
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
