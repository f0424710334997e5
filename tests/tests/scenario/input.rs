//! Input that is wrong: each binary refuses it with exit code 2 (or the API with 4xx), naming the place and the remedy.

use std::process::{Command, Output};
use std::time::Duration;

use outrigger_tests::world::process::{Launch, Process};
use outrigger_tests::world::scratch::Scratch;
use outrigger_tests::world::{Control, binary, resource};
use serde_json::json;

fn run(program: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut process = Process::start(program, &Launch::built(program).unwrap().args(args)).unwrap();
    process.is_loud = false;
    let status = process.wait_exit(Duration::from_secs(15)).unwrap();
    (status.code(), process.log().join("\n"))
}

#[track_caller]
fn assert_refused(program: &str, args: &[&str], mentions: &[&str]) {
    let (code, text) = run(program, args);
    assert_eq!(code, Some(2), "{program} {args:?}: {text}");
    for part in mentions {
        assert!(text.contains(part), "{program} {args:?} does not mention {part:?}: {text}");
    }
    assert!(!text.contains("panicked"), "{program} {args:?}: {text}");
}

/// Runs `outrigger-proxy -c FILE --check` on a bootstrap text.
#[track_caller]
fn assert_bootstrap_refused(text: &str, mentions: &[&str]) {
    let scratch = Scratch::new("input").unwrap();
    let file = scratch.write("bootstrap.yaml", text).unwrap();
    assert_refused("outrigger-proxy", &["-c", file.to_str().unwrap(), "--check"], mentions);
    assert_refused("outrigger-proxy", &["-c", file.to_str().unwrap()], mentions);
}

#[test]
fn the_proxy_refuses_a_wrong_command_line() {
    assert_refused("outrigger-proxy", &["--no-such-flag"], &["--no-such-flag"]);
    assert_refused("outrigger-proxy", &[], &["--config"]);
    assert_refused("outrigger-proxy", &["-c", "/nonexistent/bootstrap.yaml"], &["/nonexistent/bootstrap.yaml"]);
    for (flag, value) in
        [("--workers", "NaN"), ("--workers", "-1"), ("--workers", "0"), ("--io", "iocp"), ("--drain-time", "-5s")]
    {
        assert_refused("outrigger-proxy", &["-c", "b.yaml", flag, value], &[flag, value]);
    }
    for workers in ["0", "x", "1025"] {
        assert_refused("outrigger-proxy", &["-c", "b.yaml", "--workers", workers], &["--workers", workers, "1..=1024"]);
    }
    assert_refused(
        "outrigger-proxy",
        &["-c", "b.yaml", "--cpu-request-milli", "500m"],
        &["--cpu-request-milli", "500m"],
    );
}

#[test]
fn the_proxy_refuses_a_wrong_bootstrap_with_its_path() {
    assert_bootstrap_refused("static_resources: [unclosed", &["line"]);
    assert_bootstrap_refused("", &["empty"]);
    assert_bootstrap_refused("nodes: { id: a }", &["nodes", "node"]);
    let port = |value: serde_json::Value| {
        let mut bootstrap = resource::forwarding(&["127.0.0.1:9".parse().unwrap()]);
        bootstrap["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            ["address"]["socket_address"]["port_value"] = value;
        bootstrap.to_string()
    };
    let path = "port_value";
    assert_bootstrap_refused(&port(json!(70_000)), &[path, "70000", "65535"]);
    assert_bootstrap_refused(&port(json!(-1)), &[path, "-1"]);
    assert_bootstrap_refused(&port(json!("NaN")), &[path, "NaN"]);
    assert_bootstrap_refused(&port(json!(1.5)), &[path, "1.5"]);
    let with = |over: serde_json::Value| {
        let mut bootstrap = resource::forwarding(&["127.0.0.1:9".parse().unwrap()]);
        let cluster = bootstrap["static_resources"]["clusters"][0].take();
        bootstrap["static_resources"]["clusters"][0] = resource::merge(cluster, over);
        bootstrap.to_string()
    };
    assert_bootstrap_refused(&with(json!({ "connect_timeout": "-1s" })), &["connect_timeout"]);
    assert_bootstrap_refused(&with(json!({ "connect_timeout": "0s" })), &["connect_timeout"]);
    assert_bootstrap_refused(&with(json!({ "type": "TELEPATHY" })), &["type", "TELEPATHY"]);
    assert_bootstrap_refused(&with(json!({ "conect_timeout": "1s" })), &["conect_timeout", "connect_timeout"]);
    assert_bootstrap_refused(&with(json!({ "lb_policy": "CLUSTER_PROVIDED" })), &["lb_policy"]);
}

#[test]
fn the_proxy_finds_every_mistake_of_a_bootstrap_at_once() {
    let mut bootstrap = resource::forwarding(&["127.0.0.1:9".parse().unwrap()]);
    bootstrap["static_resources"]["clusters"][0]["connect_timeout"] = json!("0s");
    bootstrap["static_resources"]["listeners"][0]["address"]["socket_address"]["address"] = json!("not-an-address");
    assert_bootstrap_refused(&bootstrap.to_string(), &["connect_timeout", "not-an-address"]);
}

#[test]
fn the_proxy_checks_a_good_bootstrap() {
    let scratch = Scratch::new("input").unwrap();
    let file = scratch.write("b.json", &resource::forwarding(&["127.0.0.1:9".parse().unwrap()]).to_string()).unwrap();
    let (code, text) = run("outrigger-proxy", &["-c", file.to_str().unwrap(), "--check"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = run("outrigger-proxy", &["--version"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("outrigger-proxy"), "{text}");
}

#[test]
fn the_control_plane_refuses_a_wrong_command_line() {
    assert_refused("outrigger-control", &["--no-such-flag"], &["--no-such-flag"]);
    assert_refused("outrigger-control", &["-c", "/nonexistent/control.yaml"], &["/nonexistent/control.yaml"]);
    for (flag, value) in
        [("--api", "127.0.0.1:NaN"), ("--api", "127.0.0.1:-1"), ("--xds", "127.0.0.1:70000"), ("--log-level", "x=loud")]
    {
        assert_refused("outrigger-control", &[flag, value], &[flag, value]);
    }
    assert_refused("outrigger-control", &["--api", "0.0.0.0:0"], &["--token-file"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let scratch = Scratch::new("input").unwrap();
    let store = scratch.path().join("s.redb").to_string_lossy().into_owned();
    assert_refused("outrigger-control", &["--api", &address, "--store", &store], &[&address, "--api"]);
    let broken = scratch.write("control.yaml", "api: [").unwrap();
    assert_refused("outrigger-control", &["-c", broken.to_str().unwrap()], &["control.yaml"]);
}

fn ctl(control: &Control, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = control.ctl(args).unwrap();
    (status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

#[test]
fn outriggerctl_refuses_wrong_input() {
    let control = Control::start();
    let upstream =
        |spec: &str| format!("apiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{ name: a }}\nspec: {spec}\n");
    for (name, text, mentions) in [
        ("broken.yaml", "kind: [".to_owned(), &["broken.yaml", "line"][..]),
        (
            "kind.yaml",
            "apiVersion: outrigger.dev/v1\nkind: Upstraem\nmetadata: { name: a }\nspec: {}\n".to_owned(),
            &["Upstraem", "Upstream"],
        ),
        ("nan.yaml", upstream("{ endpoints: [{ address: \"127.0.0.1:1\", weight: .nan }] }"), &["weight", "nan"]),
        ("negative.yaml", upstream("{ endpoints: [{ address: \"127.0.0.1:1\", weight: -1 }] }"), &["weight", "-1"]),
        ("port.yaml", upstream("{ endpoints: [{ address: \"127.0.0.1:70000\" }] }"), &["address", "70000"]),
        ("field.yaml", upstream("{ endpoints: [], loadBalancer: {} }"), &["loadBalancer", "loadBalancing"]),
    ] {
        let file = control.write(name, &text).unwrap();
        let (code, said) = ctl(&control, &["apply", "-f", &file]);
        assert_eq!(code, Some(2), "{name}: {said}");
        for part in mentions {
            assert!(said.to_lowercase().contains(&part.to_lowercase()), "{name} does not mention {part:?}: {said}");
        }
    }
    for args in
        [&["--no-such-flag"][..], &["apply", "-f", "/nonexistent.yaml"], &["get", "teapots"], &["delete", "upstream"]]
    {
        let (code, said) = ctl(&control, args);
        assert_eq!(code, Some(2), "{args:?}: {said}");
    }
    let gone = Command::new(binary::find("outriggerctl").unwrap())
        .args(["--server", "http://127.0.0.1:9", "get", "all"])
        .output()
        .unwrap();
    assert_eq!(gone.status.code(), Some(1), "{}", String::from_utf8_lossy(&gone.stderr));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("127.0.0.1:9"));
}

#[test]
fn the_api_refuses_wrong_input() {
    let control = Control::start();
    let yaml = "application/yaml";
    for (method, path, body, status, mentions) in [
        ("POST", "/v1/apply", "kind: [", 400, &["line"][..]),
        (
            "POST",
            "/v1/apply",
            "apiVersion: outrigger.dev/v1\nkind: Teapot\nmetadata: { name: a }\nspec: {}",
            422,
            &["Teapot", "kind"],
        ),
        ("GET", "/v1/teapots", "", 404, &["teapots"]),
        ("GET", "/v1/upstream/default/none", "", 404, &["none"]),
        ("POST", "/v1/wait", "{\"timeout\": \"-1s\"}", 400, &["timeout"]),
        ("POST", "/v1/wait", "{\"revision\": 999}", 404, &["999"]),
        ("PATCH", "/v1/apply", "", 405, &[]),
        ("POST", "/v1/apply?dryrun=1", "", 400, &["dryRun"]),
    ] {
        let response = control.call(method, path, yaml, body).unwrap();
        let text = response.text();
        assert!((400..500).contains(&response.status), "{method} {path}: {}: {text}", response.status);
        assert_eq!(response.status / 100, status / 100, "{method} {path}: {text}");
        for part in mentions {
            assert!(text.contains(part), "{method} {path} does not mention {part:?}: {text}");
        }
    }
}
