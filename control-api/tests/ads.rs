//! The xDS server against the built binary, with real gRPC clients.
#![allow(clippy::panic, reason = "a test ends with what went wrong")]

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc;
use prost::Message;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use world::{Control, DEADLINE, Folder, route, upstream};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Long enough for a push that must not come to come.
const QUIET: Duration = Duration::from_millis(300);

fn node(id: &str, metadata: &str) -> Node {
    outrigger_xds_proto::json::from_yaml(&format!("id: {id}\ncluster: shop\nmetadata: {{outrigger: {metadata}}}"))
        .expect("a node")
}

fn sidecar(id: &str) -> Node {
    node(id, "{namespace: default, outbound: '127.0.0.1:15001'}")
}

/// A proxy as it looks from the wire.
struct Reader {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
    names: BTreeMap<String, Vec<String>>,
    versions: BTreeMap<String, String>,
    nonces: BTreeMap<String, String>,
}

async fn channel(control: &Control) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", control.xds)).expect("an address");
    endpoint.timeout(DEADLINE).connect().await.expect("connects")
}

impl Reader {
    async fn connect(control: &Control, node: Node) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = AggregatedDiscoveryServiceClient::new(channel(control).await);
        let stream = client.stream_aggregated_resources(ReceiverStream::new(receiver));
        let responses = stream.await.expect("a stream").into_inner();
        let (names, versions, nonces) = Default::default();
        Self { requests, responses, node: Some(node), names, versions, nonces }
    }

    async fn send(&mut self, type_url: &str, refusal: Option<&str>) {
        let request = DiscoveryRequest {
            node: self.node.take(),
            type_url: type_url.to_owned(),
            resource_names: self.names.get(type_url).cloned().unwrap_or_default(),
            version_info: self.versions.get(type_url).cloned().unwrap_or_default(),
            response_nonce: self.nonces.get(type_url).cloned().unwrap_or_default(),
            error_detail: refusal.map(|message| rpc::Status { message: message.to_owned(), ..Default::default() }),
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.expect("the stream takes it");
    }

    async fn ask(&mut self, type_url: &str, names: &[&str]) {
        self.names.insert(type_url.to_owned(), names.iter().map(ToString::to_string).collect());
        self.send(type_url, None).await;
    }

    async fn next(&mut self) -> DiscoveryResponse {
        let message = tokio::time::timeout(DEADLINE, self.responses.message()).await.expect("a push in time");
        let response = message.expect("no error").expect("the stream goes on");
        self.nonces.insert(response.type_url.clone(), response.nonce.clone());
        response
    }

    async fn expect(&mut self, type_url: &str) -> DiscoveryResponse {
        let response = self.next().await;
        assert_eq!(response.type_url, type_url);
        response
    }

    async fn ack(&mut self, response: &DiscoveryResponse) {
        self.versions.insert(response.type_url.clone(), response.version_info.clone());
        self.send(&response.type_url, None).await;
    }

    async fn take(&mut self, type_url: &str) -> DiscoveryResponse {
        let response = self.expect(type_url).await;
        self.ack(&response).await;
        response
    }

    async fn settle(&mut self, clusters: &[&str]) {
        self.ask(CDS, &[]).await;
        self.take(CDS).await;
        if !clusters.is_empty() {
            self.ask(EDS, clusters).await;
            self.take(EDS).await;
        }
        self.ask(LDS, &[]).await;
        self.take(LDS).await;
        self.ask(RDS, &["outbound"]).await;
        self.take(RDS).await;
    }

    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(QUIET, self.responses.message()).await.is_err()
    }
}

fn port_of(response: &DiscoveryResponse) -> u32 {
    let set = ClusterLoadAssignment::decode(response.resources[0].value.as_slice()).expect("decodes");
    let shown = outrigger_xds_proto::json::to_json(&set);
    let address = &shown["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
    address["port_value"].as_u64().and_then(|port| u32::try_from(port).ok()).expect("a port")
}

fn start(name: &str) -> (Folder, Control) {
    let folder = Folder::new(name);
    let control = Control::start(&folder.file("policy.redb"));
    (folder, control)
}

async fn wait(control: &Control, body: serde_json::Value) -> (u16, serde_json::Value) {
    let (api, text) = (control.api, body.to_string());
    aside(move || world::send_to(api, ("POST", "/v1/wait"), &text, &[]).expect("the API answers")).await
}

/// A call that blocks, beside the streams, whose answers are sent meanwhile.
async fn aside<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call).await.expect("it does not panic")
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

#[test]
fn a_pushed_policy_is_taken_and_waited_for() {
    let (_folder, control) = start("ads-dance");
    control.apply(&(upstream("a", 1) + &route("a", &[("a", 1)])));
    block_on(async {
        let mut reader = Reader::connect(&control, sidecar("gateway-0")).await;
        reader.settle(&["a.default"]).await;
        assert_eq!(wait(&control, json!({ "proxies": ["gateway-0"] })).await.0, 200);
        control.apply(&(upstream("a", 1) + &upstream("b", 2) + &route("a", &[("a", 90), ("b", 10)])));
        let (status, answer) = wait(&control, json!({ "revision": 2, "timeout": "20ms" })).await;
        assert_eq!(status, 504, "{answer:#}");
        assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains("gateway-0")), "{answer:#}");
        reader.take(CDS).await;
        reader.ask(EDS, &["a.default", "b.default"]).await;
        reader.take(EDS).await;
        let routes = reader.take(RDS).await;
        let table = RouteConfiguration::decode(routes.resources[0].value.as_slice()).expect("decodes");
        let shown = outrigger_xds_proto::json::to_json(&table);
        let clusters = &shown["virtual_hosts"][0]["routes"][0]["route"]["weighted_clusters"]["clusters"];
        assert_eq!(clusters[1], json!({ "name": "b.default", "weight": 10 }));
        let (status, answer) = wait(&control, json!({ "revision": 2 })).await;
        assert_eq!((status, &answer["running"]), (200, &json!(["gateway-0"])));
        let (_, proxies) = control.send("GET", "/v1/proxies", "");
        let proxy = &proxies["proxies"][0];
        assert_eq!((&proxy["node"], &proxy["cluster"]), (&json!("gateway-0"), &json!("shop")));
        assert_eq!(proxy["runningRevision"], json!(2));
        assert_eq!(proxy["types"]["RDS"]["ackedVersion"], json!(routes.version_info));
    });
}

#[test]
fn a_refusal_is_shown_fails_the_wait_and_is_not_repeated() {
    let (_folder, control) = start("ads-nack");
    control.apply(&upstream("a", 1));
    block_on(async {
        let mut reader = Reader::connect(&control, sidecar("gateway-0")).await;
        reader.settle(&["a.default"]).await;
        control.apply(&upstream("a", 2));
        reader.expect(EDS).await;
        reader.send(EDS, Some("cluster \"a.default\": endpoints[0]: no")).await;
        let (status, answer) = wait(&control, json!({ "revision": 2 })).await;
        assert_eq!(status, 409, "{answer:#}");
        let reason = answer["error"]["refused"][0]["reason"].as_str().unwrap_or_default();
        assert_eq!(reason, "refused EDS: cluster \"a.default\": endpoints[0]: no");
        let server = format!("http://{}", control.api);
        let (code, _, err) = aside(move || world::run_ctl(&server, &["wait", "--revision", "2"], "")).await;
        assert!(code == 1 && err.contains("endpoints[0]: no"), "{code} {err}");
        let table = control.ctl(&["proxies"], "").1;
        assert!(table.contains("refused EDS: cluster"), "{table}");
        assert!(control.send("GET", "/metrics", "").1.to_string().contains("nacks_total{type=\\\"EDS\\\"} 1"));
        assert!(reader.is_quiet().await, "the refused version was sent again");
        control.apply(&upstream("a", 3));
        // The wait begins before the proxy hears of revision 3: the old refusal must not end it.
        let (waited, taken) = tokio::join!(wait(&control, json!({ "revision": 3 })), reader.take(EDS));
        assert_eq!((waited.0, port_of(&taken)), (200, 3), "{:#}", waited.1);
    });
}

#[test]
fn after_a_restart_of_the_server_nothing_held_is_sent_again() {
    let folder = Folder::new("ads-restart");
    let store = folder.file("policy.redb");
    let control = Control::start(&store);
    control.apply(&(upstream("a", 1) + &upstream("b", 2) + &route("a", &[("a", 1), ("b", 2)])));
    block_on(async {
        let mut before = Reader::connect(&control, sidecar("gateway-0")).await;
        before.settle(&["a.default", "b.default"]).await;
        assert_eq!(wait(&control, json!({})).await.0, 200);
        assert_eq!(control.stop("KILL").code(), None);
        let control = Control::start(&store);
        let mut after = Reader::connect(&control, sidecar("gateway-0")).await;
        after.versions = before.versions.clone();
        for (type_url, names) in [(CDS, &[][..]), (EDS, &["a.default", "b.default"]), (LDS, &[]), (RDS, &["outbound"])]
        {
            after.ask(type_url, names).await;
        }
        assert_eq!(wait(&control, json!({ "proxies": ["gateway-0"] })).await.0, 200);
        assert!(after.is_quiet().await, "something held was sent again");
        control.apply(&upstream("a", 9));
        assert_eq!(port_of(&after.take(EDS).await), 9);
    });
}

#[test]
fn a_slow_reader_gets_the_latest_only() {
    let (_folder, control) = start("ads-slow");
    control.apply(&upstream("a", 1));
    block_on(async {
        let mut slow = Reader::connect(&control, sidecar("slow")).await;
        slow.settle(&["a.default"]).await;
        let mut quick = Reader::connect(&control, sidecar("quick")).await;
        quick.settle(&["a.default"]).await;
        control.apply(&upstream("a", 2));
        let unanswered = slow.expect(EDS).await;
        for port in 3..=40 {
            control.apply(&upstream("a", port));
        }
        // The quick one is not held up by the slow one.
        let mut seen = 0;
        while port_of(&quick.take(EDS).await) < 40 {
            seen += 1;
        }
        assert!(seen <= 39);
        slow.ack(&unanswered).await;
        assert_eq!(port_of(&slow.take(EDS).await), 40);
        assert!(slow.is_quiet().await, "an older version was queued");
    });
}

#[test]
fn two_hundred_proxies_take_ten_revisions() {
    const PROXIES: usize = 200;
    let (_folder, control) = start("ads-many");
    control.apply(&(upstream("a", 1) + &route("a", &[("a", 1)])));
    block_on(async {
        let mut readers = tokio::task::JoinSet::new();
        for index in 0..PROXIES {
            let mut reader = Reader::connect(&control, sidecar(&format!("proxy-{index}"))).await;
            readers.spawn(async move {
                reader.settle(&["a.default"]).await;
                while port_of(&reader.take(EDS).await) != 10 {}
                reader
            });
        }
        assert_eq!(wait(&control, json!({})).await.0, 200);
        for port in 2..=10 {
            control.apply(&upstream("a", port));
        }
        let mut done = Vec::new();
        while let Some(reader) = readers.join_next().await {
            done.push(reader.expect("takes all of it"));
        }
        let (status, answer) = wait(&control, json!({ "revision": 10 })).await;
        assert_eq!(status, 200, "{answer:#}");
        assert_eq!(answer["running"].as_array().map(Vec::len), Some(PROXIES));
        drop(done);
        let api = control.api;
        aside(move || {
            world::eventually("an empty roster", || {
                let (_, proxies) = world::send_to(api, ("GET", "/v1/proxies"), "", &[]).ok()?;
                (proxies["proxies"] == json!([])).then_some(())
            });
        })
        .await;
    });
}

#[test]
fn wrong_streams_are_ended_with_the_reason() {
    let (_folder, control) = start("ads-wrong");
    block_on(async {
        for (node, words) in [
            (Node::default(), "node.id"),
            (node("n", "{outbound: nowhere}"), "metadata.outrigger.outbound"),
            (node("n", "{inbound: {listen: '127.0.0.1:1', app: '127.0.0.1:2'}}"), "inbound.service"),
        ] {
            let mut reader = Reader::connect(&control, node).await;
            reader.ask(CDS, &[]).await;
            let status = reader.responses.message().await.expect_err(words);
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(words), "{status:?}");
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel(&control).await);
        let (_requests, receiver) = mpsc::channel::<DeltaDiscoveryRequest>(1);
        let status = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.expect_err("delta");
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        // None of that took a seat.
        assert_eq!(control.send("GET", "/v1/proxies", "").1["proxies"], json!([]));
        let mut reader = Reader::connect(&control, sidecar("right")).await;
        reader.ask(CDS, &[]).await;
        reader.take(CDS).await;
    });
}

#[test]
fn a_message_above_the_limit_ends_the_stream_only() {
    let (_folder, control) = start("ads-large");
    block_on(async {
        let mut reader = Reader::connect(&control, sidecar("large")).await;
        let names: Vec<String> = (0..200_000).map(|index| format!("{index:0>60}")).collect();
        reader.names.insert(EDS.to_owned(), names);
        reader.send(EDS, None).await;
        let status = reader.responses.message().await.expect_err("too large");
        assert_eq!(status.code(), tonic::Code::OutOfRange, "{status:?}");
        let mut other = Reader::connect(&control, sidecar("other")).await;
        other.ask(CDS, &[]).await;
        other.take(CDS).await;
    });
}
