//! Policy over the API to a running sidecar: what is applied is what traffic does, and what is told about it is true.

use std::time::Duration;

use outrigger_tests::world::{
    Answer, Control, Downstream, Io, Proxy, ProxySetup, Response, Upstream, resource, wait_for,
};
use serde_json::{Value, json};

/// A control plane and one sidecar with an outbound listener in the namespace `default`.
struct Mesh {
    control: Control,
    proxy: Proxy,
}

impl Mesh {
    fn start(io: Io) -> Self {
        let control = Control::start();
        let role = json!({ "namespace": "default", "outbound": "127.0.0.1:0" });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("caller-0", control.xds(), role)));
        Self { control, proxy }
    }

    fn call(&self, service: &str, target: &str) -> Response {
        let mut client = Downstream::connect(self.proxy.listener("outbound")).unwrap();
        client.request("GET", target, &[("host", service)], b"").unwrap()
    }

    fn apply(&self, yaml: &str) -> u64 {
        self.control.apply_and_wait(yaml).unwrap()
    }

    fn ctl(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.control.ctl(args).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }
}

fn upstream_yaml(name: &str, upstream: &Upstream) -> String {
    format!(
        "apiVersion: outrigger.dev/v1\nkind: Upstream\nmetadata: {{ name: {name} }}\n\
         spec: {{ endpoints: [{{ address: \"{}\" }}] }}\n---\n",
        upstream.address()
    )
}

fn route_yaml(service: &str, backends: &[(&str, u32)]) -> String {
    let refs: Vec<String> =
        backends.iter().map(|(name, weight)| format!("{{ name: {name}, weight: {weight} }}")).collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {service} }}\n\
         spec:\n  parentRefs: [{{ kind: Service, name: {service} }}]\n  rules:\n    - backendRefs: [{}]\n---\n",
        refs.join(", ")
    )
}

on_both_drivers! {
    fn an_apply_changes_what_traffic_does(io) {
        let (one, two) = (Upstream::named("one"), Upstream::named("two"));
        let mesh = Mesh::start(io);
        assert_eq!(mesh.call("one", "/").status, 404, "nothing is known yet");
        mesh.apply(&[upstream_yaml("one", &one), upstream_yaml("two", &two)].concat());
        assert_eq!(mesh.call("one", "/").text(), "one");
        assert_eq!(mesh.call("two.default", "/").text(), "two");
        mesh.apply(&route_yaml("shop", &[("one", 1), ("two", 0)]));
        assert_eq!(mesh.call("shop", "/").text(), "one");
        mesh.apply(&route_yaml("shop", &[("one", 0), ("two", 1)]));
        assert_eq!(mesh.call("shop", "/").text(), "two");
        mesh.control.delete("httproute", "default", "shop").unwrap();
        wait_for("the route to go", Duration::from_secs(5), || {
            match mesh.call("shop", "/").status {
                404 => Ok(()),
                status => Err(format!("status {status}")),
            }
        });
    }

    fn limits_and_retries_come_from_policy(io) {
        let flaky = Upstream::start(|request| match request.number {
            0 => Answer::status(503),
            _ => Answer::ok("second"),
        });
        let mesh = Mesh::start(io);
        mesh.apply(&[
            &upstream_yaml("flaky", &flaky), &route_yaml("flaky", &[("flaky", 1)]),
            "apiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: { name: again }\nspec:\n  \
             targetRefs: [{ kind: HTTPRoute, name: flaky }]\n  retry: { on: [gateway-error], attempts: 1 }\n",
        ].concat());
        assert_eq!(mesh.call("flaky", "/").text(), "second");
        mesh.apply(
            "apiVersion: outrigger.dev/v1\nkind: RateLimit\nmetadata: { name: few }\nspec:\n  \
             targetRefs: [{ kind: HTTPRoute, name: flaky }]\n  requests: 2\n  per: 1h\n",
        );
        let answers: Vec<Response> = (0..3).map(|_| mesh.call("flaky", "/")).collect();
        assert_eq!(answers.iter().map(|one| one.status).collect::<Vec<_>>(), [200, 200, 429]);
        assert_eq!(answers[2].fault_kind(), "local/policy/rate-limited");
        assert!(answers[2].header("outrigger-fault").unwrap().contains("few"), "the refusal names its rule: {:?}", answers[2].fault());
    }

    fn an_apply_is_all_or_nothing(io) {
        let one = Upstream::named("one");
        let mesh = Mesh::start(io);
        let bad = [upstream_yaml("one", &one), route_yaml("shop", &[("missing", 1)])].concat();
        let error = mesh.control.apply(&bad).unwrap_err().to_string();
        for part in ["missing", "spec.rules[0].backendRefs[0].name"] {
            assert!(error.contains(part), "the answer does not mention {part:?}: {error}");
        }
        assert_eq!(mesh.call("one", "/").status, 404, "nothing of it was applied");
    }

    fn the_control_plane_dies_and_comes_back_with_its_store(io) {
        let (one, two) = (Upstream::named("one"), Upstream::named("two"));
        let mut mesh = Mesh::start(io);
        mesh.apply(&[upstream_yaml("one", &one), upstream_yaml("two", &two), route_yaml("shop", &[("one", 1)])].concat());
        mesh.control.kill();
        assert_eq!(mesh.call("shop", "/").text(), "one", "traffic goes on without it");
        mesh.control.resume().unwrap();
        wait_for("the sidecar to be back", Duration::from_secs(20), || {
            let proxies = mesh.control.proxies().map_err(|error| error.to_string())?;
            match proxies["proxies"].as_array() {
                Some(list) if list.len() == 1 => Ok(()),
                _ => Err(proxies.to_string()),
            }
        });
        assert_eq!(mesh.call("shop", "/").text(), "one");
        mesh.apply(&route_yaml("shop", &[("two", 1)]));
        assert_eq!(mesh.call("shop", "/").text(), "two");
    }

    fn an_inbound_listener_leads_to_the_application(io) {
        let app = Upstream::named("application");
        let control = Control::start();
        let role = json!({
            "namespace": "default", "outbound": "127.0.0.1:0",
            "inbound": { "listen": "127.0.0.1:0", "app": app.address().to_string(), "service": "orders" },
        });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("orders-0", control.xds(), role)));
        let response = outrigger_tests::world::downstream::get(proxy.listener("inbound"), "/any").unwrap();
        assert_eq!(response.text(), "application");
    }

    fn the_mesh_says_what_nobody_nearer_does(io) {
        let flaky = Upstream::start(|request| match request.number {
            n if n % 2 == 0 => Answer::status(503),
            _ => Answer::status(200).body("twice"),
        });
        let mesh = Mesh::start(io);
        let config = |traffic: &str| {
            format!("---\napiVersion: outrigger.dev/v1\nkind: MeshConfig\nmetadata: {{ name: mesh }}\nspec: {{ traffic: {traffic} }}\n")
        };
        mesh.apply(&(upstream_yaml("flaky", &flaky) + &config("{ retry: { on: [5xx], attempts: 1 } }")));
        for _ in 0..3 {
            assert_eq!(mesh.call("flaky", "/").text(), "twice");
        }
        let own = "---\napiVersion: outrigger.dev/v1\nkind: TrafficPolicy\nmetadata: { name: own }\n\
                   spec: { targetRefs: [{ kind: Upstream, name: flaky }], retry: { attempts: 0 } }\n";
        mesh.apply(own);
        let statuses = [mesh.call("flaky", "/").status, mesh.call("flaky", "/").status];
        assert_eq!(statuses, [503, 200], "what is nearer holds");
        let (code, text) = mesh.ctl(&["get", "meshconfig"]);
        assert!(code == Some(0) && text.contains("sets traffic"), "{text}");
    }

    fn who_may_call_is_policy_too(io) {
        let app = Upstream::named("application");
        let control = Control::start();
        let role = json!({
            "namespace": "default",
            "inbound": { "listen": "127.0.0.1:0", "app": app.address().to_string(), "service": "orders" },
        });
        let proxy = Proxy::start(&ProxySetup::new(io, resource::dynamic("orders-0", control.xds(), role)));
        let policy = |name: &str, spec: &str| {
            format!("---\napiVersion: outrigger.dev/v1\nkind: AccessPolicy\nmetadata: {{ name: {name} }}\nspec: {spec}\n")
        };
        let ask = |path: &str| outrigger_tests::world::downstream::get(proxy.listener("inbound"), path).unwrap();
        let denies = "{ targetRefs: [{ kind: Service, name: orders }], action: Deny, rules: [{ to: [{ paths: [{ value: /admin }] }] }] }";
        control.apply_and_wait(&(upstream_yaml("orders", &app) + &policy("no-admin", denies))).unwrap();
        assert_eq!(ask("/any").text(), "application");
        for path in ["/admin", "/admin/users?id=1", "//admin", "/x/../admin", "/%61dmin"] {
            let refused = ask(path);
            assert_eq!((refused.status, refused.fault_kind()), (403, "local/authorize/denied".to_owned()), "{path}");
            assert_eq!(refused.fault()["rule"], "default/no-admin/0", "{path}");
        }
        assert_eq!(ask("/x/..%2fadmin").status, 400, "which application reads what is open: nobody is asked");
        assert_eq!(ask("/administrator").text(), "application");

        // Allowed from elsewhere only: from here no longer; then by audit, which only counts.
        let allows = "{ rules: [{ from: [{ addresses: [10.0.0.0/8] }] }] }";
        control.apply_and_wait(&policy("inside", allows)).unwrap();
        assert_eq!(ask("/any").status, 403);
        control.apply_and_wait(&policy("inside", &allows.replace("{ rules", "{ mode: Audit, rules"))).unwrap();
        assert_eq!(ask("/any").text(), "application");
        let labels = [("listener", "inbound"), ("verdict", "shadow_denied")];
        assert!(proxy.metric("outrigger_listener_access_total", &labels) >= 1.0);
        control.apply_and_wait(&policy("inside", "{ rules: [{ from: [{ addresses: [127.0.0.0/8] }] }] }")).unwrap();
        assert_eq!((ask("/any").text(), ask("/admin").status), ("application".to_owned(), 403));
    }
}

#[test]
fn outriggerctl_applies_waits_gets_and_deletes() {
    let (one, two) = (Upstream::named("one"), Upstream::named("two"));
    let mesh = Mesh::start(Io::Auto);
    let text = [upstream_yaml("one", &one), upstream_yaml("two", &two), route_yaml("shop", &[("one", 3), ("two", 1)])]
        .concat();
    let file = mesh.control.write("shop.yaml", &text).unwrap();
    let (code, said) = mesh.ctl(&["apply", "-f", &file, "--wait", "--timeout", "20s"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("HTTPRoute default/shop created") && said.contains("revision"), "{said}");
    assert_eq!(mesh.call("shop", "/").status, 200);
    let (code, said) = mesh.ctl(&["get", "all"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(["KIND", "HTTPRoute", "Upstream", "shop", "one"].iter().all(|part| said.contains(part)), "{said}");
    let (_, yaml) = mesh.ctl(&["get", "httproute", "shop", "-o", "yaml"]);
    assert!(yaml.contains("backendRefs"), "{yaml}");
    let again = mesh.control.write("again.yaml", &yaml).unwrap();
    let (code, said) = mesh.ctl(&["apply", "-f", &again]);
    assert_eq!(code, Some(0), "what get prints, apply takes: {said}");
    assert!(said.contains("unchanged"), "{said}");
    let (_, json_text) = mesh.ctl(&["proxies", "-o", "json"]);
    let proxies: Value = serde_json::from_str(&json_text).unwrap_or_else(|error| panic!("{error}: {json_text}"));
    assert!(proxies.to_string().contains("caller-0"), "{proxies}");
    let (code, said) = mesh.ctl(&["delete", "upstream", "one"]);
    assert_eq!(code, Some(2), "an upstream in use is not deleted: {said}");
    assert!(said.contains("HTTPRoute default/shop"), "it names who uses it: {said}");
    let (code, said) = mesh.ctl(&["delete", "-f", &file]);
    assert_eq!(code, Some(0), "{said}");
    let (_, said) = mesh.ctl(&["get", "all"]);
    assert!(said.contains("nothing found"), "{said}");
}

#[test]
fn watching_tells_each_change() {
    let one = Upstream::named("one");
    let mesh = Mesh::start(Io::Auto);
    let mut watch = Downstream::connect(mesh.control.api()).unwrap();
    let host = mesh.control.api().to_string();
    watch.send_request("GET", "/v1/watch", &[("host", &host), ("accept", "text/event-stream")], b"").unwrap();
    let head = watch.read_response_head().unwrap();
    assert_eq!((head.status, head.header("content-type").as_deref()), (200, Some("text/event-stream")));
    mesh.apply(&upstream_yaml("one", &one));
    let mut seen = String::new();
    while !(seen.contains("Upstream") && seen.contains("one")) {
        seen.push_str(&String::from_utf8_lossy(&watch.read_bytes(1).unwrap()));
        assert!(seen.len() < 64 * 1024, "{seen}");
    }
}
