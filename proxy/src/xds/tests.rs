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
use crate::config::{ClusterTarget, Protocol, RouteAction};

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

fn opaque_listener(name: &str, cluster: &str) -> Any {
    let value = json!({ "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "s", "cluster": cluster,
        } }] }] });
    any::pack(&json::from_value::<Listener>(&value).unwrap())
}

/// The one cluster that an opaque listener names.
fn opaque_cluster(snapshot: &Snapshot, listener: &str) -> (String, bool) {
    let Protocol::Tcp(tcp) = &snapshot.listener(listener).unwrap().chains[0].protocol else { panic!("not opaque") };
    (tcp.clusters[0].cluster.to_string(), tcp.clusters[0].index.is_some())
}

fn table(name: &str, cluster: &str) -> Any {
    let value = json!({ "name": name, "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": cluster } } ] }] });
    any::pack(&json::from_value::<RouteConfiguration>(&value).unwrap())
}

/// The one cluster that the first table's first route names.
fn routed_cluster(snapshot: &Snapshot, listener: &str) -> (String, bool) {
    let table = snapshot.routes_of(snapshot.listener(listener).unwrap().https().next().unwrap()).unwrap();
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

/// Asks and answers of the start, up to the first published epoch: cluster `a`, listener `in`, table `t` → `a`.
async fn start(world: &mut World) -> Talk {
    let mut talk = world.talk().await;
    talk.acked("1", vec![cluster("a", 1001)]).await;
    talk.acked("1", vec![listener("in", "t")]).await;
    talk.acked("1", vec![table("t", "a")]).await;
    assert_eq!(world.snapshot().await.epoch, 1);
    talk
}

#[tokio::test]
async fn a_bad_resource_is_named_while_its_sibling_is_applied() {
    with_client(FETCH, "", |mut world| async move {
        let mut talk = start(&mut world).await;
        let mut bad = Cluster { name: "bad".into(), ..Default::default() };
        bad.connect_timeout = Some(envoy_types::pb::google::protobuf::Duration { seconds: 0, nanos: 0 });
        let mut broken = json::from_value::<Cluster>(&json!({ "name": "a" })).unwrap();
        broken.lb_policy = 99;
        let nonce = talk.push("2", vec![cluster("b", 1002), any::pack(&bad), any::pack(&broken)]).await;
        let nack = talk.answer(&nonce).await;
        assert_eq!(nack.version_info, "1");
        let detail = nack.error_detail.unwrap();
        assert_eq!(detail.code, 3);
        assert!(detail.message.contains("cluster \"bad\": connect_timeout: 0s is not above 0s"), "{}", detail.message);
        assert!(detail.message.contains("cluster \"a\": lb_policy: 99 is not a known value"), "{}", detail.message);
        let snapshot = world.snapshot().await;
        assert_eq!(snapshot.epoch, 2);
        assert!(snapshot.cluster_index("b").is_some() && snapshot.cluster_index("bad").is_none());
        // The refused one keeps its last good version.
        let (_, endpoints) = snapshot.cluster(snapshot.cluster_index("a").unwrap()).unwrap();
        assert_eq!(endpoints.endpoints[0].address.port(), 1001);
        let seen = &world.status.view().types[0];
        assert_eq!((seen.version.as_str(), seen.accepted, seen.rejected), ("1", 1, 1));
        talk.acked("3", vec![cluster("a", 1003), cluster("b", 1002)]).await;
        assert_eq!(world.snapshot().await.epoch, 3);
        assert_eq!(world.status.view().types[0].last_rejection, None);
    })
    .await;
}

#[tokio::test]
async fn what_does_not_decode_refuses_the_whole_and_duplicates_count_once() {
    with_client(FETCH, "", |mut world| async move {
        let mut talk = start(&mut world).await;
        let garbage = Any { type_url: Type::Clusters.url().to_owned(), value: vec![0xff; 9] };
        let nonce = talk.push("2", vec![cluster("b", 1002), garbage]).await;
        assert_eq!(talk.answer(&nonce).await.version_info, "1");
        let nonce = talk.push("3", vec![cluster("a", 1004), cluster("a", 1005)]).await;
        let detail = talk.answer(&nonce).await.error_detail.unwrap().message;
        assert!(detail.contains("cluster \"a\": is there twice"), "{detail}");
        let snapshot = world.snapshot().await;
        assert_eq!((snapshot.epoch, snapshot.clusters().len()), (2, 1));
        assert_eq!(snapshot.clusters()[0].1.endpoints[0].address.port(), 1004);
    })
    .await;
}

#[tokio::test]
async fn a_lost_stream_is_opened_again_with_what_is_held() {
    with_client(FETCH, "", |mut world| async move {
        drop(start(&mut world).await);
        let mut talk = world.talk().await;
        let first = talk.request().await;
        assert_eq!((first.type_url.as_str(), first.version_info.as_str()), (Type::Clusters.url(), "1"));
        assert_eq!((first.response_nonce.as_str(), first.node.unwrap().id.as_str()), ("", "n0"));
        assert_eq!(talk.request().await.type_url, Type::Listeners.url());
        let tables = talk.request().await;
        assert_eq!((tables.version_info.as_str(), tables.resource_names), ("1", vec!["t".to_owned()]));
        // The same again is no news.
        talk.acked("1", vec![cluster("a", 1001)]).await;
        talk.acked("1", vec![table("t", "a")]).await;
        talk.acked("2", vec![cluster("a", 1002)]).await;
        assert_eq!(world.snapshot().await.epoch, 2);
        assert_eq!(world.status.view().connects, 2);
    })
    .await;
}

#[tokio::test]
async fn removal_ends_a_listener_and_a_cluster_that_nobody_names() {
    with_client(FETCH, "", |mut world| async move {
        let mut talk = start(&mut world).await;
        talk.acked("2", vec![listener("other", "t")]).await;
        let snapshot = world.snapshot().await;
        assert!(snapshot.listener("in").is_none() && snapshot.listener("other").is_some());
        // A cluster that routes still name lingers, so that the order of removals does not matter.
        talk.acked("2", vec![cluster("b", 1002)]).await;
        let snapshot = world.snapshot().await;
        assert!(snapshot.cluster_index("a").is_some() && snapshot.cluster_index("b").is_some());
        talk.acked("2", vec![table("t", "b")]).await;
        let snapshot = world.snapshot().await;
        assert_eq!(routed_cluster(&snapshot, "other"), ("b".to_owned(), true));
        assert!(snapshot.cluster_index("a").is_none());
    })
    .await;
}

#[tokio::test]
async fn an_opaque_listener_comes_with_its_clusters_and_keeps_them() {
    with_client("0.3s", "", |mut world| async move {
        let mut talk = world.talk().await;
        talk.acked("1", vec![cluster("a", 1001)]).await;
        talk.acked("1", vec![opaque_listener("in", "a")]).await;
        let snapshot = world.snapshot().await;
        assert_eq!(opaque_cluster(&snapshot, "in"), ("a".to_owned(), true));
        // Named before it is there: the old listener serves until it is.
        talk.acked("2", vec![opaque_listener("in", "b")]).await;
        talk.acked("2", vec![cluster("b", 1002)]).await;
        let snapshot = world.snapshot().await;
        assert_eq!(opaque_cluster(&snapshot, "in"), ("b".to_owned(), true));
        // Gone while it is named: it lingers.
        talk.acked("3", vec![cluster("c", 1003)]).await;
        let snapshot = world.snapshot().await;
        assert!(snapshot.cluster_index("b").is_some() && snapshot.cluster_index("c").is_some());
        talk.acked("3", vec![opaque_listener("in", "nowhere")]).await;
        let snapshot = world.snapshot().await;
        assert_eq!(opaque_cluster(&snapshot, "in"), ("nowhere".to_owned(), false));
        let view = world.status.view();
        assert!(view.warming.iter().any(|text| text.contains("cluster \"nowhere\" of listener \"in\"")), "{view:?}");
    })
    .await;
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_names_what_is_missing() {
    with_client("0.3s", "", |mut world| async move {
        let mut talk = world.talk().await;
        talk.acked("1", vec![eds_cluster("a")]).await;
        talk.acked("1", vec![listener("in", "t")]).await;
        let snapshot = world.snapshot().await;
        assert!(snapshot.routes_of(snapshot.listener("in").unwrap().https().next().unwrap()).is_none());
        let view = world.status.view();
        assert!(view.warming.iter().any(|text| text.contains("route table \"t\" of listener \"in\"")), "{view:?}");
        assert!(view.warming.iter().any(|text| text.contains("endpoints of cluster \"a\"")), "{view:?}");
        assert!(!world.status.is_ready());
        // What is known to be missing holds nothing up.
        talk.acked("2", vec![eds_cluster("a"), cluster("b", 1)]).await;
        assert!(world.snapshot().await.cluster_index("b").is_some());
        talk.acked("1", vec![table("t", "nowhere")]).await;
        let snapshot = world.snapshot().await;
        assert_eq!(routed_cluster(&snapshot, "in"), ("nowhere".to_owned(), false));
        talk.acked("1", vec![endpoints("a", 5)]).await;
        world.snapshot().await;
        talk.acked("2", vec![table("t", "a")]).await;
        world.snapshot().await;
        assert!(world.status.is_ready() && world.status.waiting().is_empty());
    })
    .await;
}

#[tokio::test]
async fn in_whatever_order_a_push_arrives_no_epoch_is_a_mix() {
    with_client(FETCH, "", |mut world| async move {
        let mut talk = world.talk().await;
        let chance = Chance::from_seed(7);
        let mut epoch = 0;
        for round in 0..40_u32 {
            let name = format!("c{round}");
            let mut pushes = vec![
                vec![eds_cluster(&name)],
                vec![endpoints(&name, 1000 + round)],
                vec![listener("in", "t")],
                vec![table("t", &name)],
            ];
            for at in (1..pushes.len()).rev() {
                pushes.swap(at, usize::try_from(chance.below(at as u64 + 1)).unwrap());
            }
            for push in pushes {
                talk.push(&round.to_string(), push).await;
            }
            // Endpoints and routes sent before they were asked for are left out; a server sends them when asked.
            talk.push(&round.to_string(), vec![endpoints(&name, 1000 + round)]).await;
            talk.push(&round.to_string(), vec![table("t", &name)]).await;
            loop {
                let snapshot = world.snapshot().await;
                epoch += 1;
                assert_eq!(snapshot.epoch, epoch);
                let (routed, is_there) = routed_cluster(&snapshot, "in");
                assert!(is_there, "{routed} dangles in round {round}");
                let at = snapshot.cluster_index(&routed).unwrap();
                let port = u32::from(snapshot.cluster(at).unwrap().1.endpoints[0].address.port());
                assert_eq!(format!("c{}", port - 1000), routed);
                if routed == name && snapshot.clusters().len() == 1 {
                    break;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn many_resources_are_taken_in_bounded_time() {
    with_client(FETCH, "", |mut world| async move {
        let mut talk = world.talk().await;
        talk.acked("1", vec![listener("in", "t")]).await;
        talk.acked("1", vec![table("t", "c7")]).await;
        let mut all: Vec<Any> = (0..50_000).map(|at| cluster_quick(&format!("c{at}"))).collect();
        let began = std::time::Instant::now();
        talk.acked("1", all.clone()).await;
        let first = world.snapshot().await;
        assert_eq!(first.clusters().len(), 50_000);
        // One change among them is recognised by its bytes: the rest is not read again.
        all[7] = cluster("c7", 9);
        talk.acked("2", all).await;
        let second = world.snapshot().await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(80), "{took:?}");
        let config = |snapshot: &Snapshot, name: &str| {
            let (config, _) = snapshot.cluster(snapshot.cluster_index(name).unwrap()).unwrap();
            config.clone()
        };
        for (name, is_same) in [("c7", false), ("c8", true), ("c49999", true)] {
            assert_eq!(Arc::ptr_eq(&config(&first, name), &config(&second, name)), is_same, "{name}");
        }
    })
    .await;
}

fn cluster_quick(name: &str) -> Any {
    any::pack(&Cluster { name: name.to_owned(), ..Default::default() })
}

#[tokio::test]
async fn without_a_server_the_file_is_published_once_and_names_are_looked_up() {
    let text = "static_resources:
  clusters:
  - name: d
    type: STRICT_DNS
    load_assignment: { cluster_name: d, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address:
      { address: localhost, port_value: 81 } } } } ] } ] }";
    let bootstrap = bootstrap::parse(Path::new("b.yaml"), text).unwrap();
    let (publish, mut published) = mpsc::unbounded_channel();
    let status = Arc::<XdsStatus>::default();
    let client = run(Arc::new(bootstrap), status.clone(), |s| publish.send(s).unwrap());
    let test = async {
        let snapshot: Arc<Snapshot> = published.recv().await.unwrap();
        assert_eq!((snapshot.epoch, snapshot.clusters()[0].1.endpoints.len()), (1, 1));
    };
    tokio::select! {
        () = test => {}
        () = client => panic!("the client stopped"),
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("the test hangs"),
    }
    assert!(published.try_recv().is_err() && !status.view().configured);
}

#[tokio::test]
async fn what_the_file_configures_stands() {
    let extra = "  - { name: fixed, type: STATIC }\n";
    with_client(FETCH, extra, |mut world| async move {
        let mut talk = world.talk().await;
        let nonce = talk.push("1", vec![cluster("fixed", 1)]).await;
        let detail = talk.answer(&nonce).await.error_detail.unwrap().message;
        assert!(detail.contains("cluster \"fixed\": name: is configured in the bootstrap file"), "{detail}");
    })
    .await;
}
