//! Where one side stops in the middle: who is told, who is blamed, what is freed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use outrigger_tests::world::resource::{
    self, CLUSTER, ENDPOINTS, LISTENER, ROUTES, any_host, cluster, eds_cluster, forward, http, listener, merge, plain,
    route, table,
};
use outrigger_tests::world::{AdsServer, Answer, Downstream, Gate, Io, Proxy, ProxySetup, Upstream, wait_for};
use serde_json::{Value, json};

/// Longer than any of these may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// An upstream of one connection: reads a request head, then does what it is told.
fn raw<T: Send + 'static>(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> (SocketAddr, JoinHandle<T>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        serve(stream)
    });
    (address, serving)
}

/// A bootstrap that forwards from `at` to one upstream.
fn listening(at: SocketAddr, upstream: SocketAddr) -> Value {
    let mut bootstrap = resource::forwarding(&[upstream]);
    bootstrap["static_resources"]["listeners"][0]["address"] = resource::address(at);
    bootstrap
}

on_both_drivers! {
    // A ring is taken apart after its process has ended, so what a killed proxy listened on is free some milliseconds later.
    fn an_address_that_is_free_soon_is_waited_for(io) {
        let upstream = Upstream::named("up");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let setup = ProxySetup::new(io, listening(at, upstream.address()));
        let (mut process, _scratch) = Proxy::spawn("proxy", &setup).unwrap();
        wait_for("the proxy to find the port in use", PATIENCE, || {
            let log = process.log().join("\n");
            if log.contains("another process holds the port") { Ok(()) } else { Err(log) }
        });
        drop(taken);
        process.wait_line("outrigger-proxy ready ", PATIENCE).unwrap();
        assert_eq!(Downstream::connect(at).unwrap().get("/").unwrap().text(), "up");
    }

    fn an_address_that_stays_in_use_is_refused_input(io) {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let setup = ProxySetup::new(io, listening(at, "127.0.0.1:9".parse().unwrap()));
        let (mut process, _scratch) = Proxy::spawn("proxy", &setup).unwrap();
        process.is_loud = false;
        assert_eq!(process.wait_exit(PATIENCE).unwrap().code(), Some(2));
        let log = process.log().join("\n");
        assert!(log.contains("\"main\"") && log.contains(&at.to_string()) && log.contains("choose another"), "{log}");
    }

    fn a_client_that_leaves_in_a_stalled_answer_frees_the_endpoint(io) {
        let (address, serving) = raw(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789").unwrap();
            stream.read(&mut [0])
        });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::forwarding(&[address])));
        let mut client = proxy.connect();
        client.send_request("GET", "/", &[], b"").unwrap();
        assert_eq!(client.read_response_head().unwrap().status, 200);
        client.read_bytes(10).unwrap();
        drop(client);
        // An end or a reset: a connection still open would time this read out.
        let ended = serving.join().unwrap();
        let is_closed = ended.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |n| *n == 0);
        assert!(is_closed, "{ended:?}");
    }

    fn a_slow_upload_is_not_the_endpoints_delay(io) {
        let upstream = Upstream::named("up");
        let retry = json!({ "retry_on": "gateway-error", "num_retries": 1, "per_try_timeout": "0.1s" });
        let action = json!({ "route": { "cluster": "app", "timeout": "5s", "retry_policy": retry } });
        let outlier = json!({ "outlier_detection": { "consecutive_5xx": 1, "max_ejection_percent": 100 } });
        let app = merge(cluster("app", &[upstream.address()]), outlier);
        let proxy = Proxy::start(&ProxySetup::new(io, plain(vec![route("/", action)], vec![app])));
        let mut client = proxy.connect();
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234").unwrap();
        client.set_patience(Duration::from_millis(400)).unwrap();
        client.read_bytes(1).expect_err("no answer to half a request");
        client.set_patience(PATIENCE).unwrap();
        client.send(b"56789").unwrap();
        let response = client.read_response("PUT").unwrap();
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(proxy.metric("outrigger_endpoint_ejections_total", &[]) as u64, 0);
        assert_eq!(proxy.metric("outrigger_route_received_bytes_total", &[]) as u64, 10);
    }

    fn a_request_whose_end_came_after_its_answer_began_is_in_time(io) {
        let (address, serving) = raw(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").unwrap();
            let mut body = [0; 10];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(b"o").unwrap();
            // The client says when: nothing is sent beyond its body, so this waits out the request's time.
            stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            let waited = stream.read(&mut [0]);
            stream.write_all(b"k").unwrap();
            waited.is_err()
        });
        let routes = table("main", vec![any_host(vec![route("/", forward("app"))])]);
        let over = http(json!({ "route_config": routes, "request_timeout": "0.4s" }));
        let bootstrap = resource::bootstrap(vec![listener("main", over)], vec![cluster("app", &[address])]);
        let proxy = Proxy::start(&ProxySetup::new(io, bootstrap));
        let mut client = proxy.connect();
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234").unwrap();
        assert_eq!(client.read_response_head().unwrap().status, 200);
        client.send(b"56789").unwrap();
        assert_eq!(client.read_bytes(2).unwrap(), b"ok");
        assert!(serving.join().unwrap(), "the upstream was cut off");
    }

    fn what_is_pushed_in_a_drain_is_not_listened_for(io) {
        let gate = Gate::new();
        let held = gate.clone();
        let upstream = Upstream::start(move |_| Answer::ok("late").after(&held));
        let ads = AdsServer::start();
        let push = |mark: &str| {
            let hosts = vec![any_host(vec![route("/", forward("app"))])];
            ads.set([
                (CLUSTER, eds_cluster("app")),
                (ENDPOINTS, resource::endpoints("app", &[upstream.address()])),
                (LISTENER, listener("main", http(resource::rds("main")))),
                (ROUTES, merge(table("main", hosts), json!({ "response_headers_to_add": [
                    { "header": { "key": "x-mark", "value": mark } }] }))),
            ])
        };
        push("first");
        let mut proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))));
        let mut busy = proxy.connect();
        busy.send_request("GET", "/", &[], b"").unwrap();
        proxy.wait_metric("outrigger_endpoint_active_requests", &[], 1.0);
        proxy.interrupt();
        let closed = proxy.listener("main");
        wait_for("the listener to close", PATIENCE, || match Downstream::connect(closed) {
            Ok(_) => Err("it still accepts".to_owned()),
            Err(_) => Ok(()),
        });
        let version = push("second");
        ads.wait_ack(ROUTES, version);
        let bound = |line: &String| line.contains("configuration published");
        wait_for("the push to be published", PATIENCE, || match proxy.log().iter().filter(|line| bound(line)).count() {
            0 | 1 => Err("not yet".to_owned()),
            _ => Ok(()),
        });
        let pid = proxy.process().id();
        assert_eq!(listening_sockets(pid), 1, "only the admin port listens in a drain");
        gate.open();
        assert_eq!(busy.read_response("GET").unwrap().status, 200);
    }

    fn a_cluster_that_comes_back_is_counted_again(io) {
        let upstream = Upstream::named("up");
        let ads = AdsServer::start();
        let push = |name: &'static str| {
            let marked = json!({ "route": { "cluster": name }, "response_headers_to_add": [
                { "header": { "key": "x-from", "value": name } }] });
            ads.set([
                (CLUSTER, eds_cluster(name)),
                (ENDPOINTS, resource::endpoints(name, &[upstream.address()])),
                (LISTENER, listener("main", http(resource::rds("main")))),
                (ROUTES, table("main", vec![any_host(vec![route("/", marked)])])),
            ])
        };
        push("one");
        // One worker: the one that knew the cluster is the one that meets it again.
        let setup = ProxySetup::new(io, resource::dynamic("proxy-0", ads.address(), json!({}))).workers(1);
        let proxy = Proxy::start(&setup);
        let served_by = |name: &str| {
            wait_for("the pushed routes to serve", PATIENCE, || {
                let from = proxy.get("/").map_err(|error| error.to_string())?.header("x-from");
                if from.as_deref() == Some(name) { Ok(()) } else { Err(format!("{from:?}")) }
            });
        };
        let counted = |cluster: &str, of: &str| proxy.metric(of, &[("cluster", cluster)]);
        served_by("one");
        push("two");
        served_by("two");
        ads.remove(CLUSTER, "one");
        wait_for("the removed cluster to be forgotten", PATIENCE, || match counted("one", "outrigger_cluster_requests_total") {
            0.0 => Ok(()),
            some => Err(format!("{some} requests")),
        });
        push("one");
        served_by("one");
        assert!(counted("one", "outrigger_cluster_requests_total") >= 1.0);
        assert!(counted("one", "outrigger_endpoint_requests_total") >= 1.0);
    }
}

/// TCP sockets in the listening state that a process holds.
fn listening_sockets(pid: u32) -> usize {
    let held: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok())
        .collect();
    std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            (fields.get(3) == Some(&"0A")).then(|| format!("socket:[{}]", fields[9]))
        })
        .filter(|socket| held.contains(socket))
        .count()
}
