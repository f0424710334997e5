//! Which request goes where: hosts, paths, headers, queries, weights, direct answers, redirects, rewrites.

use outrigger_tests::world::resource::{any_host, cluster, forward, plain, plain_hosts, route};
use outrigger_tests::world::{Answer, Io, Proxy, ProxySetup, Upstream, resource};
use serde_json::{Value, json};

fn direct(status: u16, body: &str) -> Value {
    json!({ "direct_response": { "status": status, "body": { "inline_string": body } } })
}

fn host(name: &str, domains: &[&str]) -> Value {
    json!({ "name": name, "domains": domains, "routes": [route("/", direct(200, name))] })
}

fn matching(rule: Value, answer: &str) -> Value {
    resource::merge(json!({ "match": rule }), direct(200, answer))
}

fn start(io: Io, bootstrap: Value) -> Proxy {
    Proxy::start(&ProxySetup::new(io, bootstrap))
}

on_both_drivers! {
    fn the_closest_virtual_host_wins(io) {
        let hosts = vec![
            host("rest", &["*"]), host("exact", &["shop.test"]), host("suffix", &["*.shop.test"]),
            host("long-suffix", &["*.eu.shop.test"]), host("prefix", &["shop.*"]), host("port", &["shop.test:8080"]),
        ];
        let proxy = start(io, plain_hosts(hosts, vec![]));
        let mut client = proxy.connect();
        for (authority, wanted) in [
            ("shop.test", "exact"), ("SHOP.test", "exact"), ("a.shop.test", "suffix"), ("a.b.shop.test", "suffix"),
            ("a.eu.shop.test", "long-suffix"), ("shop.example", "prefix"), ("shop.test:8080", "port"), ("other.test", "rest"),
        ] {
            let response = client.request("GET", "/", &[("host", authority)], b"").unwrap();
            assert_eq!(response.text(), wanted, "{authority}");
        }
    }

    fn the_first_route_that_matches_wins(io) {
        let proxy = start(io, plain(vec![
            matching(json!({ "path": "/exact" }), "exact"),
            matching(json!({ "prefix": "/", "headers": [{ "name": "x-user", "string_match": { "exact": "ann" } }] }), "ann"),
            matching(json!({ "prefix": "/", "headers": [{ "name": "x-any", "present_match": true }] }), "present"),
            matching(json!({ "prefix": "/q", "query_parameters": [{ "name": "v", "string_match": { "exact": "2" } }] }), "query"),
            matching(json!({ "safe_regex": { "regex": "/r/[0-9]+" } }), "regex"),
            matching(json!({ "path_separated_prefix": "/sep" }), "separated"),
            matching(json!({ "prefix": "/pre" }), "prefix"),
        ], vec![]));
        let mut client = proxy.connect();
        for (target, header, wanted) in [
            ("/exact", None, "exact"), ("/exact?q", None, "exact"), ("/exact/", None, ""), ("/x", Some(("x-user", "ann")), "ann"),
            ("/x", Some(("x-user", "bob")), ""), ("/x", Some(("x-any", "")), "present"), ("/q?a=1&v=2", None, "query"),
            ("/q?v=3", None, ""), ("/r/42", None, "regex"), ("/r/42x", None, ""), ("/sep/a", None, "separated"),
            ("/sep", None, "separated"), ("/separate", None, ""), ("/prefix", None, "prefix"),
        ] {
            let headers: Vec<(&str, &str)> = header.into_iter().collect();
            let response = client.request("GET", target, &headers, b"").unwrap();
            match wanted {
                "" => {
                    assert_eq!(response.status, 404, "{target} {header:?}: {}", response.text());
                    assert_eq!(response.fault_kind(), "local/route/no-route");
                }
                wanted => assert_eq!(response.text(), wanted, "{target} {header:?}"),
            }
        }
    }

    fn weights_are_kept(io) {
        let (one, two) = (Upstream::named("one"), Upstream::named("two"));
        let weighted = json!({ "route": { "weighted_clusters": { "clusters": [
            { "name": "one", "weight": 80 }, { "name": "two", "weight": 20 },
        ]}}});
        let proxy = start(io, plain(vec![route("/", weighted)], vec![
            cluster("one", &[one.address()]), cluster("two", &[two.address()]),
        ]));
        let mut client = proxy.connect();
        for _ in 0..2_000 {
            assert_eq!(client.get("/").unwrap().status, 200);
        }
        // A fair draw leaves 1600 ± 160 less than once in 10^18 runs.
        let share = one.request_count();
        assert!((1_440..=1_760).contains(&share), "{share} of 2000");
        assert_eq!(share + two.request_count(), 2_000);
    }

    fn a_direct_answer_and_a_redirect_are_made_here(io) {
        let proxy = start(io, plain(vec![
            route("/teapot", direct(418, "short and stout")),
            route("/old", json!({ "redirect": { "host_redirect": "new.test", "prefix_rewrite": "/new", "response_code": "PERMANENT_REDIRECT" } })),
            route("/tls", json!({ "redirect": { "https_redirect": true } })),
        ], vec![]));
        let mut client = proxy.connect();
        let teapot = client.get("/teapot").unwrap();
        assert_eq!((teapot.status, teapot.text().as_str()), (418, "short and stout"));
        assert_eq!(teapot.fault_kind(), "local/route/direct-response");
        let moved = client.request("GET", "/old/a?b=c", &[("host", "old.test")], b"").unwrap();
        assert_eq!((moved.status, moved.header("location").as_deref()), (308, Some("http://new.test/new/a?b=c")));
        assert_eq!(moved.fault_kind(), "local/route/redirect");
        let tls = client.request("GET", "/tls/a", &[("host", "old.test")], b"").unwrap();
        assert_eq!((tls.status, tls.header("location").as_deref()), (301, Some("https://old.test/tls/a")));
    }

    fn rewrites_and_header_edits_reach_the_upstream(io) {
        let upstream = Upstream::start(|_| Answer::ok("done").header("x-secret", "1").header("x-keep", "2"));
        let action = json!({
            "route": { "cluster": "app", "prefix_rewrite": "/v2", "host_rewrite_literal": "inner.test" },
            "request_headers_to_add": [{ "header": { "key": "x-added", "value": "yes" }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }],
            "request_headers_to_remove": ["x-drop"],
            "response_headers_to_remove": ["x-secret"],
            "response_headers_to_add": [{ "header": { "key": "x-more", "value": "3" } }],
        });
        let proxy = start(io, plain(vec![route("/v1", action)], vec![cluster("app", &[upstream.address()])]));
        let response = proxy.connect().request("GET", "/v1/a?b", &[("x-added", "no"), ("x-drop", "1")], b"").unwrap();
        assert_eq!((response.header("x-secret"), response.header("x-keep").as_deref()), (None, Some("2")));
        assert_eq!(response.header("x-more").as_deref(), Some("3"));
        let seen = &upstream.requests()[0];
        assert_eq!((seen.target.as_str(), seen.headers.all("host")), ("/v2/a?b", vec!["inner.test".to_owned()]));
        assert_eq!((seen.headers.all("x-added"), seen.headers.all("x-drop")), (vec!["yes".to_owned()], vec![]));
    }

    fn a_cluster_that_is_not_there_is_503_and_says_so(io) {
        let proxy = start(io, plain(vec![route("/", json!({ "route": { "cluster_header": "x-cluster" } }))], vec![]));
        let response = proxy.connect().request("GET", "/", &[("x-cluster", "ghost")], b"").unwrap();
        assert_eq!((response.status, response.fault_kind().as_str()), (503, "local/route/no-cluster"));
        assert_eq!(response.fault().get("retry").map(String::as_str), Some("safe"));
    }

    fn a_cluster_without_endpoints_is_503_and_says_so(io) {
        let proxy = start(io, plain_hosts(vec![any_host(vec![route("/", forward("empty"))])], vec![cluster("empty", &[])]));
        let response = proxy.get("/").unwrap();
        assert_eq!((response.status, response.fault_kind().as_str()), (503, "local/balance/no-endpoint"));
        assert_eq!(response.fault().get("cluster").map(String::as_str), Some("empty"));
    }
}
