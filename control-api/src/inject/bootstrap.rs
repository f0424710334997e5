//! Purpose: the bootstrap of an injected proxy, as text.
//! Shape: who it is (`node`), and where its control plane is (the rest). `$(NAME)` is expanded by the kubelet inside a
//! variable's value; nothing expands it in a file, so a projected file holds the rest and the variable the node.
//! Source: Envoy's `config.bootstrap.v3.Bootstrap`; Kubernetes, "Define Dependent Environment Variables".

use super::annotations::Values;
use super::form::split_address;
use super::{ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT};

/// Who the proxy is, and what it captures.
pub(super) fn node(values: &Values) -> String {
    let outbound = match values.text("outbound-policy") {
        // What is not said is as MeshConfig says.
        "mesh" => String::new(),
        policy => format!("        outboundPolicy: {policy}\n"),
    };
    format!(
        r#"node:
  id: "$(POD_NAME).$(POD_NAMESPACE)"
  cluster: "$(SERVICE_ACCOUNT).$(POD_NAMESPACE)"
  metadata:
    outrigger:
      namespace: "$(POD_NAMESPACE)"
      serviceAccount: "$(SERVICE_ACCOUNT)"
      capture:
        addresses: "$(POD_IPS)"
        outboundPort: {OUTBOUND_PORT}
        inboundPort: {INBOUND_PORT}
        mode: {}
{outbound}"#,
        values.text("capture-mode"),
    )
}

/// Where its control plane is; the same for all pods of one address.
pub(super) fn rest(values: &Values) -> String {
    let (host, port) = split_address(values.text("xds-address")).unwrap_or_default();
    format!(
        r#"admin:
  address: {{ socket_address: {{ address: 127.0.0.1, port_value: {ADMIN_PORT} }} }}
dynamic_resources:
  ads_config:
    api_type: GRPC
    transport_api_version: V3
    grpc_services: [ {{ envoy_grpc: {{ cluster_name: xds }} }} ]
  lds_config: {{ ads: {{}}, resource_api_version: V3 }}
  cds_config: {{ ads: {{}}, resource_api_version: V3 }}
static_resources:
  clusters:
  - name: xds
    type: STRICT_DNS
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: xds
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: "{host}", port_value: {port} }} }} }}
"#
    )
}
