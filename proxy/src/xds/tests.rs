use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use outrigger_xds_proto::{any, json};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::bootstrap;
use crate::config::{ClusterTarget, RouteAction};

/// A server that the test plays by hand.
struct Puppet(mpsc::Sender<Talk>);

/// One stream of it.
struct Talk {
    requests: Streaming<DiscoveryRequest>,
    responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    nonce: u64,
}

type Out<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Puppet {
    type StreamAggregatedResourcesStream = Out<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Out<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        let talk = Talk { requests: request.into_inner(), responses, nonce: 0 };
        self.0.send(talk).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta"))
    }
}

impl Talk {
    async fn request(&mut self) -> DiscoveryRequest {
        self.requests.message().await.unwrap().expect("the client keeps the stream open")
    }

    /// Sends a response and gives its nonce.
    async fn push(&mut self, version: &str, resources: Vec<Any>) -> String {
        let url = resources[0].type_url.clone();
        self.push_typed(version, &url, resources).await
    }

    async fn push_typed(&mut self, version: &str, url: &str, resources: Vec<Any>) -> String {
        self.nonce += 1;
        let nonce = format!("n{}", self.nonce);
        let response = DiscoveryResponse {
            version_info: version.to_owned(),
            resources,
            type_url: url.to_owned(),
            nonce: nonce.clone(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        nonce
    }

    /// The answer to `nonce`; requests before it are of other types.
    async fn answer(&mut self, nonce: &str) -> DiscoveryRequest {
        loop {
            let request = self.request().await;
            if request.response_nonce == nonce {
                return request;
            }
        }
    }

    async fn acked(&mut self, version: &str, resources: Vec<Any>) {
        let nonce = self.push(version, resources).await;
        let answer = self.answer(&nonce).await;
        assert_eq!((answer.version_info.as_str(), answer.error_detail), (version, None));
    }
}

struct World {
    talks: mpsc::Receiver<Talk>,
    published: mpsc::UnboundedReceiver<Arc<Snapshot>>,
    status: Arc<XdsStatus>,
}

impl World {
    async fn talk(&mut self) -> Talk {
        self.talks.recv().await.unwrap()
    }

    async fn snapshot(&mut self) -> Arc<Snapshot> {
        self.published.recv().await.unwrap()
    }

    fn has_more(&mut self) -> bool {
        self.published.try_recv().is_ok()
    }
}

const FETCH: &str = "15s";

/// Runs a client against a puppet until the test is done.
async fn with_client<T, F>(fetch: &str, extra: &str, test: T)
where
    T: FnOnce(World) -> F,
    F: Future<Output = ()>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (talks, talk) = mpsc::channel(16);
    let server = tonic::transport::Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(Puppet(talks)).max_decoding_message_size(1 << 26))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let bootstrap = dynamic(address, fetch, extra);
    let (publish, published) = mpsc::unbounded_channel();
    let status = Arc::<XdsStatus>::default();
    let client = run(Arc::new(bootstrap), status.clone(), |s| publish.send(s).unwrap());
    let world = World { talks: talk, published, status };
    tokio::select! {
        () = test(world) => {}
        () = client => panic!("the client stopped"),
        ended = server => panic!("the server stopped: {ended:?}"),
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("the test hangs"),
    }
}

fn dynamic(server: SocketAddr, fetch: &str, extra: &str) -> bootstrap::Bootstrap {
    let text = format!(
        "node: {{ id: n0, cluster: test }}
dynamic_resources:
  cds_config: {{ ads: {{}}, initial_fetch_timeout: {fetch} }}
  lds_config: {{ ads: {{}} }}
  ads_config: {{ api_type: GRPC, grpc_services: [ {{ envoy_grpc: {{ cluster_name: xds }} }} ] }}
static_resources:
  clusters:
  - name: xds
    load_assignment: {{ cluster_name: xds, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address:
      {{ address: {}, port_value: {} }} }} }} }} ] }} ] }}
{extra}",
        server.ip(),
        server.port()
    );
    bootstrap::parse(Path::new("b.yaml"), &text).unwrap()
}

fn endpoints_json(name: &str, port: u32) -> serde_json::Value {
    json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
        "socket_address": { "address": "127.0.0.1", "port_value": port } } } }] }] })
}

fn cluster(name: &str, port: u32) -> Any {
    let value = json!({ "name": name, "type": "STATIC", "load_assignment": endpoints_json(name, port) });
    any::pack(&json::from_value::<Cluster>(&value).unwrap())
}

fn eds_cluster(name: &str) -> Any {
    let value = json!({ "name": name, "type": "EDS", "eds_cluster_config": { "eds_config": { "ads": {} } } });
    any::pack(&json::from_value::<Cluster>(&value).unwrap())
}

fn endpoints(name: &str, port: u32) -> Any {
    any::pack(&json::from_value::<ClusterLoadAssignment>(&endpoints_json(name, port)).unwrap())
}

fn listener(name: &str, table: &str) -> Any {
    let value = json!({ "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "s",
            "rds": { "route_config_name": table, "config_source": { "ads": {} } },
            "http_filters": [{ "name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
        } }] }] });
    any::pack(&json::from_value::<Listener>(&value).unwrap())
}

fn table(name: &str, cluster: &str) -> Any {
    let value = json!({ "name": name, "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": cluster } } ] }] });
    any::pack(&json::from_value::<RouteConfiguration>(&value).unwrap())
}

/// The one cluster that the first table's first route names.
fn routed_cluster(snapshot: &Snapshot, listener: &str) -> (String, bool) {
    let table = snapshot.routes_of(snapshot.listener(listener).unwrap()).unwrap();
    let RouteAction::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("no forward") };
    let ClusterTarget::One(name, index) = &forward.target else { panic!("not one cluster") };
    (name.to_string(), index.is_some())
}

#[tokio::test]
async fn the_dance_in_order_and_one_publish_of_the_closed_graph() {
    with_client(FETCH, "", |mut world| async move {
        let mut talk = world.talk().await;
        let first = talk.request().await;
        assert_eq!((first.type_url.as_str(), first.version_info.as_str()), (Type::Clusters.url(), ""));
        assert_eq!(first.node.unwrap().id, "n0");
        let second = talk.request().await;
        assert_eq!((second.type_url.as_str(), second.node), (Type::Listeners.url(), None));

        let nonce = talk.push("c1", vec![eds_cluster("a")]).await;
        let eds = talk.request().await;
        assert_eq!((eds.type_url.as_str(), eds.resource_names), (Type::Endpoints.url(), vec!["a".to_owned()]));
        let ack = talk.request().await;
        assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("c1", nonce.as_str()));

        talk.push("l1", vec![listener("in", "t")]).await;
        let rds = talk.request().await;
        assert_eq!((rds.type_url.as_str(), rds.resource_names), (Type::RouteTables.url(), vec!["t".to_owned()]));
        assert_eq!(talk.request().await.version_info, "l1");
        talk.acked("r1", vec![table("t", "a")]).await;
        assert!(!world.has_more() && !world.status.is_ready());
        talk.acked("e1", vec![endpoints("a", 1001)]).await;

        let snapshot = world.snapshot().await;
        assert_eq!(snapshot.epoch, 1);
        assert_eq!(routed_cluster(&snapshot, "in"), ("a".to_owned(), true));
        assert_eq!(snapshot.clusters()[0].1.endpoints[0].address.port(), 1001);
        let view = world.status.view();
        let versions: Vec<_> = view.types.iter().map(|t| (t.version.as_str(), t.accepted)).collect();
        assert_eq!(versions, [("c1", 1), ("e1", 1), ("l1", 1), ("r1", 1)]);
        assert!(view.connected && view.warming.is_empty());

        talk.acked("c2", vec![eds_cluster("a")]).await;
        talk.acked("e2", vec![endpoints("a", 1002)]).await;
        let snapshot = world.snapshot().await;
        assert_eq!((snapshot.epoch, snapshot.clusters()[0].1.endpoints[0].address.port()), (2, 1002));
        assert!(world.status.is_ready());
    })
    .await;
}
