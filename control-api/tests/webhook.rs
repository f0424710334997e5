//! The webhook over real TLS: what API servers trust is what it shows, through rotations, replicas and outages.
//! The API server is one of this file: a Secret and a MutatingWebhookConfiguration over HTTP, with resourceVersions and watches.

mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use outrigger_control::inject::InjectorConfig;
use outrigger_control::webhook::{Figures, Lives, REVIEW_BYTES_MAX, Webhook, WebhookSettings};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio_rustls::client::TlsStream;
use world::{DEADLINE, Folder};

const SERVER_NAME: &str = "outrigger-control.mesh.svc";
const CONFIGURATION: &str = "outrigger-injector";
const SECRET: &str = "outrigger-injector";

/// The API server.
#[derive(Default)]
struct Cluster {
    objects: Mutex<std::collections::BTreeMap<String, Value>>,
    versions: watch::Sender<u64>,
    is_down: AtomicBool,
}

impl Cluster {
    /// With the chart's empty Secret and a configuration of three webhooks, one of them another's.
    async fn start() -> (Arc<Self>, kube::Client) {
        let cluster = Arc::<Self>::default();
        let of = |service: &str, namespace: &str| {
            json!({ "name": format!("{service}.{namespace}.example"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": { "service": { "name": service, "namespace": namespace } } })
        };
        let webhooks = json!([of("outrigger-control", "mesh"), of("other", "mesh"), of("outrigger-control", "other")]);
        cluster
            .store(
                "mutatingwebhookconfigurations",
                json!({ "metadata": { "name": CONFIGURATION }, "webhooks": webhooks }),
            )
            .await;
        cluster
            .store("secrets", json!({ "metadata": { "name": SECRET, "namespace": "mesh" }, "type": "Opaque" }))
            .await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let router = Router::new()
            .route("/api/v1/namespaces/mesh/{kind}", get(list))
            .route("/api/v1/namespaces/mesh/{kind}/{name}", get(read).put(replace))
            .route("/apis/admissionregistration.k8s.io/v1/{kind}", get(list))
            .route("/apis/admissionregistration.k8s.io/v1/{kind}/{name}", get(read).patch(patch))
            .with_state(cluster.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        let config = kube::Config::new(format!("http://{address}").parse().expect("a URL"));
        (cluster, kube::Client::try_from(config).expect("a client"))
    }

    async fn store(&self, kind: &str, mut object: Value) {
        let version = *self.versions.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        self.objects.lock().await.insert(kind.to_owned(), object);
        self.versions.send_replace(version);
    }

    async fn object(&self, kind: &str) -> Value {
        self.objects.lock().await.get(kind).cloned().unwrap_or_default()
    }

    /// What the API server would trust when it calls us.
    async fn bundle(&self, webhook: usize) -> String {
        let text =
            self.object("mutatingwebhookconfigurations").await["webhooks"][webhook]["clientConfig"]["caBundle"].clone();
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap_or_default());
        String::from_utf8(bytes.expect("base64")).expect("PEM is text")
    }
}

fn failure(code: u16, reason: &str) -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason });
    (StatusCode::from_u16(code).expect("a status"), axum::Json(status)).into_response()
}

type Parameters = Query<std::collections::BTreeMap<String, String>>;

async fn list(State(cluster): State<Arc<Cluster>>, Path(kind): Path<String>, Query(query): Parameters) -> Response {
    if cluster.is_down.load(Ordering::Relaxed) {
        return failure(500, "InternalError");
    }
    let version = *cluster.versions.borrow();
    if query.get("watch").is_none_or(|watch| watch != "true") {
        let items = [cluster.object(&kind).await];
        return axum::Json(json!({ "metadata": { "resourceVersion": version.to_string() }, "items": items }))
            .into_response();
    }
    let versions = cluster.versions.subscribe();
    let events = futures_util::stream::unfold((versions, cluster, kind), |(mut versions, cluster, kind)| async move {
        versions.changed().await.ok()?;
        let event = json!({ "type": "MODIFIED", "object": cluster.object(&kind).await });
        Some((Ok::<_, std::io::Error>(format!("{event}\n")), (versions, cluster, kind)))
    });
    Response::new(Body::from_stream(events))
}

async fn read(State(cluster): State<Arc<Cluster>>, Path((kind, _)): Path<(String, String)>) -> Response {
    if cluster.is_down.load(Ordering::Relaxed) {
        return failure(500, "InternalError");
    }
    axum::Json(cluster.object(&kind).await).into_response()
}

async fn replace(
    State(cluster): State<Arc<Cluster>>,
    Path((kind, _)): Path<(String, String)>,
    body: String,
) -> Response {
    let object: Value = serde_json::from_str(&body).expect("JSON");
    let version = &object["metadata"]["resourceVersion"];
    assert!(version.is_string(), "a write without the version that was read");
    if cluster.object(&kind).await["metadata"]["resourceVersion"] != *version {
        return failure(409, "Conflict");
    }
    cluster.store(&kind, object.clone()).await;
    axum::Json(object).into_response()
}

/// A strategic merge of `webhooks`, whose entries are told apart by their names.
async fn patch(State(cluster): State<Arc<Cluster>>, Path((kind, _)): Path<(String, String)>, body: String) -> Response {
    let patch: Value = serde_json::from_str(&body).expect("JSON");
    let mut object = cluster.object(&kind).await;
    for one in patch["webhooks"].as_array().expect("a list") {
        let webhooks = object["webhooks"].as_array_mut().expect("a list");
        let found = webhooks.iter_mut().find(|webhook| webhook["name"] == one["name"]).expect("a name that is there");
        found["clientConfig"]["caBundle"] = one["clientConfig"]["caBundle"].clone();
    }
    cluster.store(&kind, object.clone()).await;
    axum::Json(object).into_response()
}

fn settings(lives: Lives) -> WebhookSettings {
    WebhookSettings {
        address: ([127, 0, 0, 1], 0).into(),
        service: "outrigger-control".to_owned(),
        configuration: Some(CONFIGURATION.to_owned()),
        secret: Some(SECRET.to_owned()),
        folder: None,
        lives,
    }
}

/// A running webhook.
struct Running {
    address: SocketAddr,
    figures: Arc<Figures>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

async fn start(settings: &WebhookSettings, client: Option<kube::Client>) -> Running {
    let cluster = client.map(|client| (client, "mesh".to_owned()));
    let webhook = Webhook::start(settings, InjectorConfig::default(), cluster).await.expect("it starts");
    let (address, figures) = (webhook.address().expect("bound"), webhook.figures());
    let (stop, stopping) = watch::channel(false);
    Running { address, figures, stop, task: tokio::spawn(webhook.run(stopping)) }
}

/// A connection of somebody who trusts `bundle`.
async fn connect(address: SocketAddr, bundle: &str, name: &str) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.expect("PEM")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let socket = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    connector.connect(name, socket).await.map_err(|error| error.to_string())
}

/// Sends a request and reads one answer: status and body.
async fn exchange(stream: &mut TlsStream<TcpStream>, head: &str, body: &[u8]) -> (u16, String) {
    let head = format!("{head} HTTP/1.1\r\nhost: webhook\r\ncontent-length: {}\r\n", body.len());
    let kind = if head.contains("content-type") { "" } else { "content-type: application/json\r\n" };
    stream.write_all(format!("{head}{kind}\r\n").as_bytes()).await.expect("written");
    // Whoever is answered early may not be read to the end.
    let _ = stream.write_all(body).await;
    read_answer(stream).await
}

async fn read_answer(stream: &mut TlsStream<TcpStream>) -> (u16, String) {
    let mut text = Vec::new();
    loop {
        let seen = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = seen.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() >= length.unwrap_or_default() {
                let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
                return (status.expect("a status"), body.to_owned());
            }
        }
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.expect("an answer");
        assert!(count > 0, "the connection ended: {seen}");
        text.extend_from_slice(&chunk[..count]);
    }
}

fn review() -> Vec<u8> {
    let pod = json!({ "metadata": {}, "spec": { "containers": [{ "name": "app" }] } });
    let request = json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE", "object": pod });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request })
        .to_string()
        .into_bytes()
}

async fn inject(stream: &mut TlsStream<TcpStream>) {
    let (status, body) = exchange(stream, "POST /inject", &review()).await;
    assert!(status == 200 && body.contains("JSONPatch"), "{status} {body}");
}

/// Waits until `found` gives something.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut found: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = found().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::task::yield_now().await;
    }
}

/// Connects with what the configuration trusts, once it trusts anything.
async fn first(cluster: &Cluster, running: &Running) -> TlsStream<TcpStream> {
    let bundle =
        eventually("a caBundle", || async { Some(cluster.bundle(0).await).filter(|text| !text.is_empty()) }).await;
    connect(running.address, &bundle, SERVER_NAME).await.expect("what is trusted is shown")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_break_nothing_and_are_always_trusted() {
    let (cluster, client) = Cluster::start().await;
    let seconds = Duration::from_secs;
    // Times in certificates are whole seconds: each life is some seconds longer than what is left when it is renewed.
    let lives = Lives { authority: seconds(18), leaf: seconds(9), settle: seconds(1) };
    let running = start(&settings(lives), Some(client)).await;
    let mut kept = first(&cluster, &running).await;
    let old_bundle = cluster.bundle(0).await;
    let mut leaves = std::collections::BTreeSet::new();
    let started = Instant::now();
    // Until the second authority signs: whoever trusts only the first is refused then.
    loop {
        let bundle = cluster.bundle(0).await;
        let mut stream = connect(running.address, &bundle, SERVER_NAME).await.expect("always trusted");
        let (_, session) = stream.get_ref();
        leaves.insert(session.peer_certificates().expect("a chain")[0].to_vec());
        inject(&mut stream).await;
        inject(&mut kept).await;
        if connect(running.address, &old_bundle, SERVER_NAME).await.is_err() {
            assert!(bundle.ends_with(&old_bundle) && bundle.len() > old_bundle.len(), "the old one stays trusted");
            break;
        }
        assert!(started.elapsed() < DEADLINE, "the authority did not change");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    inject(&mut kept).await;
    assert!(leaves.len() >= 2, "{} certificates seen", leaves.len());
    assert!(running.figures.rotations().0 >= 3, "{:?}", running.figures.rotations());
    assert_eq!(
        (cluster.bundle(1).await, cluster.bundle(2).await),
        (String::new(), String::new()),
        "others' webhooks are theirs"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_agree_on_one_authority() {
    let (cluster, client) = Cluster::start().await;
    let settings = settings(Lives::default());
    let replicas = [client.clone(), client.clone(), client];
    let mut running = Vec::new();
    for client in replicas {
        running.push(start(&settings, Some(client)).await);
    }
    for one in &running {
        let reached = || async {
            let bundle = cluster.bundle(0).await;
            if bundle.is_empty() { None } else { connect(one.address, &bundle, SERVER_NAME).await.ok() }
        };
        inject(&mut eventually("trust in every replica", reached).await).await;
    }
    let bundle = cluster.bundle(0).await;
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1, "{bundle}");
    // Whoever overwrites the bundle is corrected; whoever does not know us gets nothing from us.
    let mut object = cluster.object("mutatingwebhookconfigurations").await;
    object["webhooks"][0]["clientConfig"]["caBundle"] = json!("");
    cluster.store("mutatingwebhookconfigurations", object).await;
    eventually("the bundle's return", || async { (cluster.bundle(0).await == bundle).then_some(()) }).await;
    assert!(connect(running[0].address, &bundle, "other.mesh.svc").await.is_err(), "another's name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_api_server_ends_nothing() {
    let (cluster, client) = Cluster::start().await;
    let seconds = Duration::from_secs;
    let lives = Lives { authority: seconds(3_600), leaf: seconds(6), settle: seconds(1) };
    let running = start(&settings(lives), Some(client)).await;
    drop(first(&cluster, &running).await);
    let bundle = cluster.bundle(0).await;
    cluster.is_down.store(true, Ordering::Relaxed);
    let rotated = running.figures.rotations().0 + 1;
    eventually("a rotation without the API server", || async {
        inject(&mut connect(running.address, &bundle, SERVER_NAME).await.expect("trusted all the time")).await;
        (running.figures.rotations().0 > rotated).then_some(())
    })
    .await;
    assert!(running.figures.rotations().1 > 0, "the outage is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_get_clear_answers() {
    let (cluster, client) = Cluster::start().await;
    let running = start(&settings(Lives::default()), Some(client)).await;
    let large = vec![b' '; REVIEW_BYTES_MAX + 1];
    for (head, body, status, wanted) in [
        ("GET /healthz", &b""[..], 200, "ok"),
        ("POST /inject", b"", 400, "not an AdmissionReview"),
        ("POST /inject", b"{}", 400, "only AdmissionReview"),
        ("GET /inject", b"", 405, "POST /inject"),
        ("POST /healthz", b"", 405, "GET /healthz"),
        ("POST /elsewhere", b"{}", 404, "no such path"),
        ("POST /inject", &large[1..], 400, "not an AdmissionReview"),
    ] {
        // Who is answered before all was read is not kept.
        let mut stream = first(&cluster, &running).await;
        let (seen, text) = exchange(&mut stream, head, body).await;
        assert!(seen == status && text.contains(wanted), "{head}: {seen} {text}");
    }
    let mut stream = first(&cluster, &running).await;
    let typed = "POST /inject HTTP/1.1\r\nhost: w\r\ncontent-type: application/yaml\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(typed.as_bytes()).await.expect("written");
    let (seen, text) = read_answer(&mut stream).await;
    assert!(seen == 415 && text.contains("application/yaml"), "{seen} {text}");
    let (seen, text) = exchange(&mut first(&cluster, &running).await, "POST /inject", &large).await;
    assert!(seen == 413 && text.contains("longer than 3407872 bytes"), "{seen} {text}");
    let malformed = running.figures.verdicts().find(|(verdict, _)| verdict.as_str() == "malformed").expect("counted");
    assert_eq!(malformed.1, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_callers_are_told_and_stopping_waits_for_none() {
    let (cluster, client) = Cluster::start().await;
    let running = start(&settings(Lives::default()), Some(client)).await;
    let mut slow = first(&cluster, &running).await;
    let head = "POST /inject HTTP/1.1\r\nhost: w\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.expect("written");
    let silent = TcpStream::connect(running.address).await.expect("accepted");
    let (seen, text) = read_answer(&mut slow).await;
    assert!(seen == 408 && text.contains("within 10 s"), "{seen} {text}");
    let mut byte = [0];
    let mut silent = silent;
    assert!(matches!(silent.read(&mut byte).await, Ok(0) | Err(_)), "a handshake that never begins is ended");
    let idle = connect(running.address, &cluster.bundle(0).await, SERVER_NAME).await.expect("a connection");
    running.stop.send_replace(true);
    tokio::time::timeout(DEADLINE, running.task).await.expect("it ends").expect("without a panic");
    drop(idle);
}

/// A self-signed certificate for localhost, in the files that cert-manager writes.
fn write_folder(folder: &Folder) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let own =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name").self_signed(&key).expect("signed");
    std::fs::write(folder.file("tls.key"), key.serialize_pem()).expect("written");
    std::fs::write(folder.file("tls.crt"), own.pem()).expect("written");
    std::fs::write(folder.file("ca.crt"), own.pem()).expect("written");
    own.pem()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_certificates_is_read_again() {
    let folder = Folder::new("webhook");
    let mut settings = WebhookSettings { configuration: None, secret: None, ..settings(Lives::default()) };
    settings.folder = Some(folder.file("."));
    let refused = Webhook::start(&settings, InjectorConfig::default(), None).await.expect_err("nothing is there");
    assert!(refused.to_string().contains("tls.crt"), "{refused}");
    let first = write_folder(&folder);
    let running = start(&settings, None).await;
    let mut kept = connect(running.address, &first, "localhost").await.expect("trusted");
    inject(&mut kept).await;
    let second = write_folder(&folder);
    let reached = || async { connect(running.address, &second, "localhost").await.ok() };
    inject(&mut eventually("the second certificate", reached).await).await;
    inject(&mut kept).await;
    // Half an update: the last good one serves on.
    std::fs::write(folder.file("tls.key"), "nothing").expect("written");
    eventually("the trouble's count", || async { (running.figures.rotations().1 > 0).then_some(()) }).await;
    inject(&mut connect(running.address, &second, "localhost").await.expect("still trusted")).await;
}
