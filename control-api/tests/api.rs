//! The API and outriggerctl against the built binary, over real sockets.

mod world;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use world::{Control, Folder, eventually, refuse_start, route, run_ctl, upstream};

fn message(answer: &Value) -> String {
    answer["error"]["message"].as_str().unwrap_or_default().to_owned()
}

fn start(name: &str) -> (Folder, Control) {
    let folder = Folder::new(name);
    let control = Control::start(&folder.file("policy.redb"));
    (folder, control)
}

#[test]
fn objects_are_put_read_listed_and_deleted() {
    let (_folder, control) = start("objects");
    let (status, shown) = control.send("PUT", "/v1/upstreams/default/pay", &upstream("pay", 80));
    assert_eq!((status, &shown["metadata"]["resourceVersion"]), (201, &json!("1")));
    assert_eq!(control.send("PUT", "/v1/Upstream/default/pay", &upstream("pay", 81)).0, 200);
    let (status, shown) = control.send("GET", "/v1/Upstream/default/pay", "");
    assert_eq!((status, &shown["spec"]["endpoints"][0]["address"]), (200, &json!("127.0.0.1:81")));
    assert_eq!(control.send("GET", "/v1/Upstream", "").1["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(control.send("GET", "/v1/Upstream/other", "").1["items"].as_array().map(Vec::len), Some(0));
    let (status, answer) = control.send("DELETE", "/v1/Upstream/default/pay", "");
    assert_eq!((status, &answer["objects"][0]["change"]), (200, &json!("deleted")));
    let (status, answer) = control.send("GET", "/v1/Upstream/default/pay", "");
    assert_eq!((status, message(&answer)), (404, "Upstream default/pay does not exist".to_owned()));
}

#[test]
fn preconditions_are_kept() {
    let (_folder, control) = start("preconditions");
    control.apply(&upstream("pay", 80));
    control.apply(&upstream("pay", 81));
    let path = "/v1/Upstream/default/pay";
    let put = |headers: &[(&str, &str)]| control.send_with("PUT", path, &upstream("pay", 82), headers).0;
    assert_eq!(put(&[("if-match", "\"1\"")]), 412);
    assert_eq!(put(&[("if-none-match", "*")]), 412);
    assert_eq!(put(&[("if-match", "x")]), 400);
    assert_eq!(put(&[("if-match", "\"2\"")]), 200);
    let apply = |revision: &str| control.send_with("POST", "/v1/apply", &upstream("b", 1), &[("if-match", revision)]).0;
    assert_eq!((apply("\"2\""), apply("\"3\"")), (412, 200));
    assert_eq!(control.send_with("DELETE", path, "", &[("if-match", "\"1\"")]).0, 412);
}

#[test]
fn an_apply_is_all_or_nothing_and_says_everything() {
    let (_folder, control) = start("apply");
    let bad = upstream("a", 80) + &upstream("b", 81).replace("81", "99999") + &route("a", &[("nope", 1)]);
    let (status, answer) = control.send("POST", "/v1/apply", &bad);
    assert_eq!(status, 422, "{answer:#}");
    let detail = &answer["error"]["details"][0];
    assert_eq!((&detail["document"], &detail["object"]), (&json!(2), &json!("Upstream default/b")));
    assert_eq!(detail["path"], json!("spec.endpoints[0].address"));
    assert_eq!(control.send("GET", "/v1/Upstream", "").1["items"], json!([]));
    let (status, answer) = control.send("POST", "/v1/apply?dryRun=true", &upstream("a", 80));
    assert_eq!((status, &answer["objects"][0]["change"], &answer["revision"]), (200, &json!("created"), &json!(0)));
    let list = json!([{
        "apiVersion": "outrigger.dev/v1", "kind": "Upstream",
        "metadata": { "name": "j" }, "spec": { "endpoints": [] },
    }]);
    let json_type = [("content-type", "application/json")];
    assert_eq!(control.send_with("POST", "/v1/apply", &list.to_string(), &json_type).0, 200);
}

#[test]
fn wrong_requests_get_their_status_and_a_remedy() {
    let (_folder, control) = start("wrong");
    for (method, path, body, status, words) in [
        (
            "GET",
            "/v1/Service",
            "",
            404,
            "one of AccessPolicy, GRPCRoute, HTTPRoute, MeshConfig, RateLimit, TrafficPolicy, Upstream",
        ),
        ("GET", "/nope", "", 404, "/openapi.json"),
        ("DELETE", "/v1/apply", "", 405, "DELETE is not possible"),
        ("POST", "/v1/apply?dryrun=true", "", 400, "dryRun=true|false"),
        ("POST", "/v1/apply", "{", 422, "document 1"),
        ("PUT", "/v1/Upstream/default/b", &upstream("a", 1), 400, "the path says Upstream default/b"),
        ("POST", "/v1/wait", "{\"revision\": 9}", 404, "the newest is 0"),
        ("POST", "/v1/wait", "{\"timeout\": \"5\"}", 400, "unit is missing"),
        ("POST", "/v1/wait", "{\"revison\": 9}", 400, "unknown field"),
    ] {
        let (got, answer) = control.send(method, path, body);
        assert_eq!(got, status, "{method} {path}: {answer:#}");
        assert!(message(&answer).contains(words), "{method} {path}: {answer:#}");
    }
    let huge = "#".repeat((4 << 20) + 1);
    assert_eq!(control.send("POST", "/v1/apply", &huge).0, 413);
    let foreign = control.send_with("GET", "/v1/proxies", "", &[("host", "evil.example")]);
    assert_eq!(foreign.0, 403, "{:#}", foreign.1);
    let page = control.send_with("POST", "/v1/apply", "", &[("origin", "https://evil.example")]);
    assert_eq!(page.0, 403, "{:#}", page.1);
}

#[test]
fn the_description_names_every_path() {
    let (_folder, control) = start("openapi");
    let (status, page) = control.send("GET", "/openapi.json", "");
    assert_eq!((status, &page["openapi"]), (200, &json!("3.1.0")));
    for (path, methods) in [
        ("/v1/apply", &["post"][..]),
        ("/v1/delete", &["post"]),
        ("/v1/watch", &["get"]),
        ("/v1/proxies", &["get"]),
        ("/v1/wait", &["post"]),
        ("/v1/{kind}", &["get"]),
        ("/v1/{kind}/{namespace}", &["get"]),
        ("/v1/{kind}/{namespace}/{name}", &["get", "put", "delete"]),
        ("/metrics", &["get"]),
        ("/healthz", &["get"]),
    ] {
        for method in methods {
            assert!(page["paths"][path][method]["responses"].is_object(), "{method} {path}");
        }
    }
    assert_eq!(control.send("GET", "/healthz", ""), (200, json!("ok\n")));
    let metrics = control.send("GET", "/metrics", "").1.to_string();
    for name in ["outrigger_control_revision 0", "outrigger_control_proxies 0", "class=\\\"2xx\\\""] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
}

/// Server-sent events of a watch: (event, id, data).
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(control: &Control, last: Option<u64>) -> Self {
        let mut socket = TcpStream::connect(control.api).expect("connects");
        socket.set_read_timeout(Some(world::DEADLINE)).expect("a timeout");
        let last = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let head = format!("GET /v1/watch HTTP/1.1\r\nhost: localhost\r\n{last}\r\n");
        socket.write_all(head.as_bytes()).expect("sends");
        Self(BufReader::new(socket))
    }

    fn next(&mut self) -> (String, u64, Value) {
        let (mut event, mut id) = (String::new(), 0);
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).expect("an event in time") > 0, "the watch ended");
            if let Some(name) = line.strip_prefix("event: ") {
                event = name.trim().to_owned();
            } else if let Some(number) = line.strip_prefix("id: ") {
                id = number.trim().parse().expect("a revision");
            } else if let Some(data) = line.strip_prefix("data: ") {
                return (event, id, serde_json::from_str(data).expect("JSON"));
            }
        }
    }
}

#[test]
fn a_watch_sees_every_revision_whole_and_resumes() {
    let (_folder, control) = start("watch");
    control.apply(&upstream("a", 1));
    let mut watch = Events::open(&control, None);
    let (event, id, data) = watch.next();
    assert_eq!((event.as_str(), id, data["objects"].as_array().map(Vec::len)), ("snapshot", 1, Some(1)));
    control.apply(&(upstream("b", 1) + &upstream("c", 1)));
    control.apply(&upstream("a", 2));
    let (event, id, data) = watch.next();
    assert_eq!((event.as_str(), id, data["changes"].as_array().map(Vec::len)), ("change", 2, Some(2)));
    assert_eq!(watch.next().1, 3);
    let mut resumed = Events::open(&control, Some(1));
    assert_eq!((resumed.next().1, resumed.next().1), (2, 3));
    control.send("DELETE", "/v1/Upstream/default/a", "");
    let (_, id, data) = resumed.next();
    assert_eq!((id, &data["changes"][0]["change"]), (4, &json!("deleted")));
}

#[test]
fn the_command_line_does_the_whole_round() {
    let (folder, control) = start("ctl");
    let file = folder.file("shop.yaml");
    let shop =
        upstream("orders", 80) + &upstream("orders-v2", 81) + &route("orders", &[("orders", 90), ("orders-v2", 10)]);
    std::fs::write(&file, &shop).expect("writes");
    let file = file.to_str().expect("UTF-8");
    let (code, out, err) = control.ctl(&["apply", "-f", file, "--wait"], "");
    assert_eq!((code, err.as_str()), (0, ""));
    for line in ["Upstream default/orders created", "HTTPRoute default/orders created", "0 proxies run revision 1"] {
        assert!(out.contains(line), "{out}");
    }
    assert_eq!(control.ctl(&["diff", "-f", file], "").0, 0);
    let moved = shop.replace("weight: 90", "weight: 50");
    let (code, out, _) = control.ctl(&["diff", "-f", "-"], &moved);
    let marked = |mark: char, word: &str| out.lines().any(|line| line.starts_with(mark) && line.ends_with(word));
    assert!(code == 1 && marked('-', "weight: 90") && marked('+', "weight: 50"), "{code} {out}");
    let (code, out, _) = control.ctl(&["get", "all"], "");
    assert!(code == 0 && out.contains("orders=90,orders-v2=10"), "{out}");
    let (code, yaml, _) = control.ctl(&["get", "httproute", "orders", "-o", "yaml"], "");
    assert_eq!(code, 0);
    assert!(control.ctl(&["apply", "-f", "-"], &yaml).1.contains("unchanged"));
    let (code, _, err) = control.ctl(&["delete", "upstream", "orders"], "");
    assert!(code == 2 && err.contains("in use by HTTPRoute default/orders") && err.contains("--force"), "{err}");
    let (code, out, _) = control.ctl(&["delete", "-f", file], "");
    assert!(code == 0 && out.matches("deleted").count() == 3, "{out}");
    assert!(control.ctl(&["proxies"], "").1.contains("no proxy is connected"));
    assert!(control.ctl(&["completions", "bash"], "").1.contains("outriggerctl"));
}

#[test]
fn the_command_line_says_what_to_do() {
    let (folder, control) = start("ctl-errors");
    let bad = upstream("a", 80).replace("endpoints", "endpionts");
    let (code, _, err) = control.ctl(&["apply", "-f", "-"], &bad);
    assert_eq!(code, 2);
    assert!(err.contains("document 1 (Upstream default/a): spec.endpionts") && err.contains("did you mean endpoints?"));
    let (good, other) = (folder.file("good.yaml"), folder.file("other.yaml"));
    std::fs::write(&good, upstream("b", 80) + &upstream("c", 80)).expect("writes");
    std::fs::write(&other, upstream("d", 80) + &bad).expect("writes");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (code, _, err) = control.ctl(&["apply", "-f", &path(&good), "-f", &path(&other)], "");
    assert_eq!(code, 2);
    assert!(err.contains("other.yaml: document 2 (Upstream default/a): spec.endpionts"), "{err}");
    for (args, code, words) in [
        (&["get", "widget"][..], 2, "one of AccessPolicy, GRPCRoute, HTTPRoute"),
        (&["apply", "-f", "/nope.yaml"], 2, "/nope.yaml"),
        (&["apply"], 2, "--file"),
        (&["frobnicate"], 2, "frobnicate"),
        (&["get", "upstream", "a"], 2, "does not exist"),
        (&["--server", "https://x", "proxies"], 2, "http://"),
    ] {
        let (got, _, err) = control.ctl(args, "");
        assert!(got == code && err.contains(words), "{args:?}: {got} {err}");
    }
    let address = control.api;
    drop(control);
    let (code, _, err) = run_ctl(&format!("http://{address}"), &["proxies"], "");
    assert!(code == 1 && err.contains("outrigger-control") && err.contains("--server"), "{err}");
}

#[test]
fn a_wait_names_who_is_missing() {
    let (_folder, control) = start("wait");
    control.apply(&upstream("a", 1));
    let body = json!({ "timeout": "50ms", "proxies": ["gateway-0"] });
    let (status, answer) = control.send("POST", "/v1/wait", &body.to_string());
    assert_eq!(status, 504, "{answer:#}");
    assert!(message(&answer).contains("gateway-0 is not connected"), "{answer:#}");
    assert_eq!(control.send("POST", "/v1/wait", "").0, 200);
}

#[test]
fn bad_starts_exit_with_2_and_a_remedy() {
    let folder = Folder::new("starts");
    let write = |name: &str, text: &str| {
        let path = folder.file(name);
        std::fs::write(&path, text).expect("writes");
        path.to_str().expect("UTF-8").to_owned()
    };
    let broken = write("broken.yaml", "api: [");
    let unknown = write("unknown.yaml", "apii: 127.0.0.1:1\nlog: {level: 5}\n");
    let short = write("token", "short\n");
    let running = Control::start(&folder.file("running.redb"));
    let taken = running.api.to_string();
    let store = folder.file("policy.redb");
    let store = store.to_str().expect("UTF-8");
    let locked = folder.file("running.redb");
    let locked = locked.to_str().expect("UTF-8");
    for (args, words) in [
        (&["--frob"][..], &["--frob"][..]),
        (&["--api", "nowhere"], &["--api", "nowhere"]),
        (&["-c", "/nope.yaml"], &["/nope.yaml", "-c"]),
        (&["-c", &broken], &["broken.yaml", "line"]),
        (&["-c", &unknown], &["apii", "did you mean api?"]),
        (&["-c", &unknown], &["log.level", "5", "string"]),
        (&["--store", store, "--log-level", "loud?"], &["--log-level"]),
        (&["--store", store, "--api", "0.0.0.0:0"], &["--token-file", "127.0.0.1"]),
        (&["--store", store, "--token-file", "/nope"], &["/nope", "urandom"]),
        (&["--store", store, "--token-file", &short], &["5 characters"]),
        (&["--store", store, "--api", &taken], &["--api", &taken, "choose another port"]),
        (&["--store", locked, "--api", "127.0.0.1:0"], &["in use by another process", "--store"]),
        (&["--store", "/proc/nope/x.redb", "--api", "127.0.0.1:0"], &["/proc/nope", "--store"]),
    ] {
        let (code, err) = refuse_start(args);
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(words.iter().all(|word| err.contains(word)), "{args:?}: {err}");
    }
}

#[test]
fn a_token_guards_everything_but_health() {
    let folder = Folder::new("token");
    let file = folder.file("token");
    std::fs::write(&file, "a-secret-of-the-mesh\n").expect("writes");
    let file = file.to_str().expect("UTF-8");
    let control = Control::start_at(&folder.file("policy.redb"), "0.0.0.0:0", "127.0.0.1:0", &["--token-file", file]);
    assert_eq!(control.send("GET", "/v1/proxies", "").0, 401);
    assert_eq!(control.send_with("GET", "/v1/proxies", "", &[("authorization", "Bearer nope")]).0, 403);
    assert_eq!(control.send("GET", "/healthz", "").0, 200);
    assert_eq!(control.ctl(&["--token-file", file, "proxies"], "").0, 0);
    assert_eq!(control.ctl(&["proxies"], "").0, 2);
}

#[test]
fn signals_end_it_in_order_even_with_a_watch_open() {
    for signal in ["TERM", "INT"] {
        let (_folder, control) = start("signal");
        let mut watch = Events::open(&control, None);
        assert_eq!(watch.next().1, 0);
        assert_eq!(control.stop(signal).code(), Some(0), "{signal}");
    }
}

#[test]
fn settings_come_from_the_file_and_flags_win() {
    let folder = Folder::new("settings");
    let store = folder.file("from-file.redb");
    let settings = folder.file("control.yaml");
    let text = format!("api: 127.0.0.1:1\nstore: {}\nlog: {{level: error, format: json}}\n", store.display());
    std::fs::write(&settings, text).expect("writes");
    let flag = folder.file("from-flag.redb");
    let control = Control::start_at(&flag, "127.0.0.1:0", "127.0.0.1:0", &["-c", settings.to_str().expect("UTF-8")]);
    control.apply(&upstream("a", 1));
    eventually("the store file", || flag.exists().then_some(()));
    assert!(!store.exists() && control.api.port() != 1);
}
