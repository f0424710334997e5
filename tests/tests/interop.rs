//! Purpose: real peers. curl and h2load before the proxy, nginx behind it; Envoy under our control plane and on our
//! bootstrap files. Run by `make interop`, which gets the peers first.
//!
//! Errors: a peer that is missing fails its test and is named; none is skipped.

#![forbid(unsafe_code)]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use outrigger_tests::world::downstream;
use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::resource::{self, cluster, forward, merge, route};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::upstream::pattern;
use outrigger_tests::world::{Answer, Control, Io, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};

const BOTH: [Io; 2] = [Io::Epoll, Io::Uring];

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `make interop` installs it"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn curl(args: &[&str]) -> String {
    let fixed = ["--silent", "--show-error", "--max-time", "20", "--noproxy", "*"];
    String::from_utf8(run("curl", &[&fixed[..], args].concat()).stdout).unwrap()
}

/// A port that was free a moment ago, for peers that cannot say which one they took.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_accepts(address: SocketAddr, process: &mut Process) {
    wait_for(&format!("{address} to accept"), Duration::from_secs(20), || {
        if let Ok(Some(status)) = process.try_exit() {
            return Err(process.failure(&format!("ended with {status}")).to_string());
        }
        std::net::TcpStream::connect(address).map(drop).map_err(|error| error.to_string())
    });
}

fn envoy_binary() -> String {
    std::env::var("OUTRIGGER_ENVOY").unwrap_or_else(|_| "envoy".to_owned())
}

/// A real Envoy on that bootstrap.
struct Envoy {
    process: Process,
    admin: SocketAddr,
    _scratch: Scratch,
}

impl Envoy {
    fn start(bootstrap: &Value) -> Self {
        let scratch = Scratch::new("envoy").unwrap();
        let file = scratch.write("bootstrap.json", &bootstrap.to_string()).unwrap();
        let admin_file = scratch.path().join("admin");
        let launch = Launch { program: envoy_binary().into(), ..Launch::default() }.args([
            "--config-path".into(),
            file.into_os_string(),
            "--admin-address-path".into(),
            admin_file.clone().into_os_string(),
        ]);
        let launch = launch.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        let mut process = Process::start("envoy", &launch).unwrap();
        let admin = wait_for("Envoy's admin address", Duration::from_secs(20), || {
            if let Ok(Some(status)) = process.try_exit() {
                panic!("{}", process.failure(&format!("ended with {status}")));
            }
            let text = std::fs::read_to_string(&admin_file).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
        });
        Self { process, admin, _scratch: scratch }
    }

    fn admin_text(&self, target: &str) -> String {
        downstream::get(self.admin, target).unwrap().text()
    }

    fn listener(&self, name: &str) -> SocketAddr {
        wait_for(&format!("Envoy's listener {name}"), Duration::from_secs(20), || {
            let text = self.admin_text("/listeners?format=json");
            let told: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let all = told["listener_statuses"].as_array().cloned().unwrap_or_default();
            let one = all.iter().find(|one| one["name"] == name).ok_or_else(|| told.to_string())?;
            let socket = &one["local_address"]["socket_address"];
            format!("{}:{}", socket["address"].as_str().unwrap_or_default(), socket["port_value"])
                .parse()
                .map_err(|error| format!("{socket}: {error}"))
        })
    }
}

#[test]
#[ignore = "needs curl: make interop"]
fn curl_gets_posts_uploads_and_keeps_its_connection() {
    for io in BOTH {
        let upstream = Upstream::start(|request| match request.target.as_str() {
            "/echo" => Answer::ok(request.body.clone()),
            "/chunks" => Answer::status(200).chunks([&b"one "[..], b"two"]),
            target => Answer::ok(format!("{} {target}", request.method)),
        });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let url = |path: &str| format!("http://{}{path}", proxy.listener("main"));
        assert_eq!(curl(&[&url("/a?b=c")]), "GET /a?b=c");
        assert_eq!(curl(&["-d", "x=1", &url("/echo")]), "x=1");
        assert_eq!(curl(&[&url("/chunks")]), "one two");
        assert_eq!(curl(&["--head", "-o", "/dev/null", "-w", "%{http_code}", &url("/h")]), "200");
        assert_eq!(curl(&["-H", "Transfer-Encoding: chunked", "-d", "chunked up", &url("/echo")]), "chunked up");
        let scratch = Scratch::new("curl").unwrap();
        let body = pattern(0, 3 << 20);
        let (up, down) = (scratch.path().join("up"), scratch.path().join("down"));
        std::fs::write(&up, &body).unwrap();
        let data = format!("@{}", up.display());
        curl(&["-H", "Expect: 100-continue", "--data-binary", &data, "-o", down.to_str().unwrap(), &url("/echo")]);
        assert!(std::fs::read(&down).unwrap() == body, "{io:?}: the upload came back changed");
        let connects = curl(&["-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", &url("/1"), &url("/2")]);
        assert_eq!(connects.trim(), "1 0", "{io:?}: the second request goes out on the first connection");
    }
}

#[test]
#[ignore = "needs h2load: make interop"]
fn h2load_over_http_1_loses_nothing() {
    for io in BOTH {
        let upstream = Upstream::start(|_| Answer::ok(vec![b'x'; 1_024]));
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[upstream.address()])));
        let url = format!("http://{}/", proxy.listener("main"));
        let text =
            String::from_utf8(run("h2load", &["--h1", "-n", "20000", "-c", "32", "-t", "1", &url]).stdout).unwrap();
        assert!(text.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{io:?}: {text}");
        assert!(text.contains("20000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{io:?}: {text}");
    }
}

#[test]
#[ignore = "needs nginx: make interop"]
fn nginx_serves_through_the_proxy() {
    let scratch = Scratch::new("nginx").unwrap();
    let folder = scratch.path().display().to_string();
    let body = pattern(0, 1 << 20);
    std::fs::write(scratch.path().join("file"), &body).unwrap();
    let address = free_port();
    let conf = format!(
        "master_process off; daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;\n\
         uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_timeout 60s;\n\
         server {{ listen {address}; root {folder}; location /conn {{ return 200 $connection; }} }} }}\n"
    );
    let conf = scratch.write("nginx.conf", &conf).unwrap();
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
    let launch = Launch { program: program.unwrap_or("nginx").into(), ..Launch::default() };
    let mut nginx =
        Process::start("nginx", &launch.args(["-p".into(), scratch.path().into(), "-c".into(), conf.into_os_string()]))
            .unwrap();
    wait_accepts(address, &mut nginx);
    for io in BOTH {
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[address])));
        let mut client = proxy.connect();
        assert!(client.get("/file").unwrap().body == body, "{io:?}");
        let connections: Vec<String> = (0..10).map(|_| client.get("/conn").unwrap().text()).collect();
        assert!(connections.iter().all(|one| *one == connections[0]), "{io:?}: kept alive: {connections:?}");
        let range = client.request("GET", "/file", &[("range", "bytes=100-199")], b"").unwrap();
        assert_eq!((range.status, range.body.as_slice()), (206, &body[100..200]));
        let head = client.request("HEAD", "/file", &[], b"").unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some((1 << 20).to_string())));
        let etag = head.header("etag").unwrap();
        assert_eq!(client.request("GET", "/file", &[("if-none-match", &etag)], b"").unwrap().status, 304);
        assert_eq!(client.get("/none").unwrap().status, 404);
    }
}

/// Envoy normalises paths only when told; we do unless told not to.
fn normalizing(routes: Vec<Value>, clusters: Vec<Value>) -> Value {
    let table = resource::table("main", vec![resource::any_host(routes)]);
    let http = resource::http(json!({ "route_config": table, "normalize_path": true }));
    resource::bootstrap(vec![resource::listener("main", http)], clusters)
}

#[test]
#[ignore = "needs envoy: make interop"]
fn one_bootstrap_file_starts_envoy_and_us_and_both_behave_alike() {
    let upstream = Upstream::start(|request| Answer::ok(format!("{} {}", request.method, request.target)));
    let bootstrap = normalizing(
        vec![
            route("/teapot", json!({ "direct_response": { "status": 418, "body": { "inline_string": "tea" } } })),
            route("/old", json!({ "redirect": { "prefix_rewrite": "/new", "response_code": "FOUND" } })),
            route("/v1", json!({ "route": { "cluster": "app", "prefix_rewrite": "/v2" } })),
            merge(route("/limited", forward("app")), resource::local_rate_limit(2, 1, "3600s")),
            json!({ "match": { "prefix": "/", "headers": [{ "name": "x-ok", "string_match": { "exact": "1" } }] }, "route": { "cluster": "app" } }),
        ],
        vec![cluster("app", &[upstream.address()])],
    );
    let envoy = Envoy::start(&bootstrap);
    let theirs = envoy.listener("main");
    for io in BOTH {
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap.clone()));
        let ours = proxy.listener("main");
        for (target, header) in
            [("/teapot", "0"), ("/old/a?b", "0"), ("/v1/x", "0"), ("/none", "0"), ("/any", "1"), ("/x/../teapot", "1")]
        {
            let ask = |address| {
                let mut client = outrigger_tests::world::Downstream::connect(address).unwrap();
                let response = client.request("GET", target, &[("host", "same.test"), ("x-ok", header)], b"").unwrap();
                (response.status, response.header("location"), response.text())
            };
            let (our_answer, their_answer) = (ask(ours), ask(theirs));
            assert_eq!(our_answer.0, their_answer.0, "{io:?} {target}");
            assert_eq!(our_answer.1, their_answer.1, "{io:?} {target}");
            if our_answer.0 < 400 {
                assert_eq!(our_answer.2, their_answer.2, "{io:?} {target}");
            }
        }
    }
    let limited =
        |address| -> Vec<u16> { (0..4).map(|_| downstream::get(address, "/limited").unwrap().status).collect() };
    let proxy = Proxy::start(&ProxySetup::new(Io::Auto, bootstrap));
    assert_eq!(limited(proxy.listener("main")), [200, 200, 429, 429]);
    assert_eq!(limited(theirs), [200, 200, 429, 429]);
}

#[test]
#[ignore = "needs envoy: make interop"]
fn envoy_runs_under_our_control_plane() {
    let (one, two) = (Upstream::named("one"), Upstream::named("two"));
    let app = Upstream::named("application");
    let control = Control::start();
    let role = json!({
        "namespace": "default", "outbound": free_port().to_string(),
        "inbound": { "listen": free_port().to_string(), "app": app.address().to_string(), "service": "caller" },
    });
    let mut envoy = Envoy::start(&resource::dynamic("envoy-0", control.xds(), role));
    let upstreams: String = [("one", &one), ("two", &two)]
        .into_iter()
        .map(|(name, upstream)| {
            format!(
                "apiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{ name: {name} }}\nspec:\n  \
                 endpoints: [{{ address: \"{}\" }}]\n  outlierDetection: {{ consecutive5xx: 3 }}\n  limits: {{ maxRequests: 100 }}\n---\n",
                upstream.address()
            )
        })
        .collect();
    let shop = |first: u32, second: u32| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: shop }}\nspec:\n  \
             parentRefs: [{{ kind: Service, name: shop }}]\n  rules:\n    - backendRefs: [{{ name: one, weight: {first} }}, {{ name: two, weight: {second} }}]\n---\n"
        )
    };
    let policy = "apiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: { name: shop }\nspec:\n  \
                  targetRefs: [{ kind: HTTPRoute, name: shop }]\n  timeouts: { request: 5s }\n  \
                  retry: { on: [gateway-error], attempts: 2 }\n  localRateLimit: { requests: 1000, per: 1s }\n";
    let wait_connected = || {
        wait_for("Envoy to be connected", Duration::from_secs(20), || {
            let proxies = control.proxies().map_err(|error| error.to_string())?;
            if proxies.to_string().contains("envoy-0") { Ok(()) } else { Err(proxies.to_string()) }
        });
    };
    wait_connected();
    control.apply_and_wait(&[&upstreams, &shop(1, 0), policy].concat()).unwrap();
    let outbound = envoy.listener("outbound");
    let ask = || {
        let mut client = outrigger_tests::world::Downstream::connect(outbound).unwrap();
        client.request("GET", "/", &[("host", "shop")], b"").unwrap().text()
    };
    assert_eq!(ask(), "one");
    control.apply_and_wait(&shop(0, 1)).unwrap();
    wait_for("Envoy to take the new weights", Duration::from_secs(10), || {
        let text = ask();
        if text == "two" { Ok(()) } else { Err(text) }
    });
    assert_eq!(downstream::get(envoy.listener("inbound"), "/").unwrap().text(), "application");
    // The whole dump: one resource with a type that Envoy does not know would make all of it fail.
    let dump = envoy.admin_text("/config_dump");
    for part in [
        "one.default",
        "two.default",
        "outlier_detection",
        "circuit_breakers",
        "\"outbound\"",
        "\"inbound\"",
        "local_ratelimit",
        "outrigger.policy.v1.RoutePolicy",
    ] {
        assert!(dump.contains(part), "Envoy's config_dump does not show {part}: {dump}");
    }
    let stats = envoy.admin_text("/stats?filter=update_rejected");
    let rejected: Vec<&str> = stats.lines().filter(|line| !line.ends_with(": 0")).collect();
    assert!(rejected.is_empty(), "Envoy refused something: {rejected:?}\n{:?}", envoy.process.log());
    assert!(envoy.process.try_exit().unwrap().is_none());
}
