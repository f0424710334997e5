//! The descriptors of every message this crate knows.
//!
//! **Purpose.** All of Envoy's API as shipped in `envoy-types`, its dependencies (xds, udpa, google) and
//! `outrigger.policy.v1`, so that any `Any` a bootstrap or a push can carry is found by name.
//! **Shape.** The messages of 518 files, embedded by `build.rs` as tables that [`crate::reflect`] reads in place.
//! **Tests.** Below: the roots are there, and the generated code has descriptors.

use prost::Name;

use crate::reflect::MessageDescriptor;

/// All messages, by name.
pub fn messages() -> impl Iterator<Item = MessageDescriptor> {
    MessageDescriptor::all()
}

/// The descriptor of the message `full_name`: `envoy.config.cluster.v3.Cluster`.
pub fn message(full_name: &str) -> Option<MessageDescriptor> {
    MessageDescriptor::find(full_name)
}

/// The descriptor of a generated message type.
pub fn of<T: Name>() -> MessageDescriptor {
    message(&T::full_name()).expect("every generated type is compiled from the embedded set")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_api_is_embedded() {
        assert!(messages().count() > 1_600, "{}", messages().count());
        for name in [
            "envoy.config.bootstrap.v3.Bootstrap",
            "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
            "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
            "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
            "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "envoy.service.discovery.v3.DeltaDiscoveryResponse",
            "google.protobuf.StringValue",
            "google.rpc.Status",
            "outrigger.policy.v1.ClusterPolicy",
            "outrigger.policy.v1.RoutePolicy",
            "udpa.type.v1.TypedStruct",
            "xds.type.v3.TypedStruct",
        ] {
            assert!(message(name).is_some(), "{name} is not embedded");
        }
    }

    #[test]
    fn generated_types_have_descriptors() {
        use crate::envoy::envoy::config::bootstrap::v3::Bootstrap;
        assert_eq!(of::<Bootstrap>().full_name(), "envoy.config.bootstrap.v3.Bootstrap");
    }
}
