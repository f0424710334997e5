use super::world::{HOSTILE, World, resources};
use crate::admin::{Condition, PATHS, Readiness, page};
use crate::config::Snapshot;
use crate::observe::describe;

#[tokio::test]
async fn every_path_of_the_index_answers_and_is_hardened() {
    let world = World::start().await;
    for (method, path, _) in PATHS {
        if path == "/events" {
            continue;
        }
        let target = if (method, path) == ("POST", "/logging") { "/logging?level=debug" } else { path };
        let answer = world.ask(method, target).await;
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
    }
    assert_eq!(
        *world.recorder.calls.lock().unwrap(),
        ["drain", "healthy=false", "healthy=true", "level=debug", "quit"]
    );
}

#[tokio::test]
async fn nothing_changes_by_get() {
    let world = World::start().await;
    for (method, path, _) in PATHS {
        let reads =
            PATHS.contains(&("GET", path, PATHS.iter().find(|p| (p.0, p.1) == ("GET", path)).map_or("", |p| p.2)));
        for wrong in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "POST"] {
            let allowed = PATHS.iter().any(|one| (one.0, one.1) == (wrong, path));
            if allowed {
                continue;
            }
            let answer = world.ask(wrong, path).await;
            assert_eq!(answer.status, 405, "{wrong} {path}");
            let allow = answer.header("allow").unwrap();
            assert!(allow.contains(method), "{wrong} {path}: {allow}");
            assert_eq!(allow.contains("GET"), reads, "{path}: {allow}");
        }
    }
    assert!(world.recorder.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unknown_paths_are_told_the_known_ones() {
    let world = World::start().await;
    for target in ["/nope", "/ready/", "//ready", "/stats/prometheus/x", "/page/index.html"] {
        let answer = world.ask("GET", target).await;
        assert_eq!(answer.status, 404, "{target}");
        assert_eq!(answer.json()["paths"].as_array().unwrap().len(), PATHS.len());
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let world = World::start().await;
    let answer = world.ask("HEAD", "/ready").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_rebound_name_is_refused_everywhere() {
    let world = World::start().await;
    let port = world.address.port();
    for host in ["evil.example".into(), format!("evil.example:{port}"), "10.1.1.1".into(), String::new()] {
        for (method, path) in [("GET", "/"), ("GET", "/config_dump"), ("GET", "/events"), ("POST", "/quitquitquit")] {
            let answer = world.ask_with(method, path, &[("host", &host)]).await;
            assert_eq!(answer.status, 403, "{host} {path}");
            assert!(answer.body.contains("loopback"), "{}", answer.body);
        }
    }
    let twice = world.ask_with("GET", "/ready", &[("host", "localhost"), ("host", "evil.example")]).await;
    assert!(matches!(twice.status, 400 | 403), "{twice:?}");
    assert_eq!(world.ask_with("GET", "/ready", &[]).await.status, 403);
    let absolute = world.ask_with("GET", "http://evil.example/ready", &[("host", "localhost")]).await;
    assert_eq!(absolute.status, 403);
    assert_eq!(world.ask_with("GET", "/ready", &[("host", &format!("localhost:{port}"))]).await.status, 200);
    assert!(world.recorder.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_page_of_another_site_cannot_post() {
    let world = World::start().await;
    let host = world.address.to_string();
    let own = format!("http://{host}");
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "https://localhost"),
        ("origin", "http://localhost:1"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let answer = world.ask_with("POST", "/drain", &[("host", &host), (name, value)]).await;
        assert_eq!(answer.status, 403, "{name}: {value}");
    }
    assert!(world.recorder.calls.lock().unwrap().is_empty());
    let headers = [("host", host.as_str()), ("origin", &own), ("sec-fetch-site", "same-origin")];
    assert_eq!(world.ask_with("POST", "/drain", &headers).await.status, 200);
    assert_eq!(*world.recorder.calls.lock().unwrap(), ["drain"]);
}

#[tokio::test]
async fn ready_names_what_is_missing() {
    let world = World::start().await;
    *world.ready.lock().unwrap() = Readiness {
        conditions: vec![Condition { name: "config", reasons: vec!["cluster \"pay\" has no endpoints".into()] }],
    };
    let answer = world.ask("GET", "/ready").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("pay"), "{answer:?}");
    assert_eq!(world.ask("GET", "/live").await.status, 200);
}

#[tokio::test]
async fn bad_queries_are_refused_with_the_choices() {
    let world = World::start().await;
    for (method, target, words) in [
        ("GET", "/config_dump?format=xml", "json"),
        ("GET", "/clusters?format=", "text"),
        ("GET", "/stats?format=yaml", "prometheus"),
        ("GET", "/stats?filter=%28", "regular expression"),
        ("GET", "/stats?filter=%28a%7B1000%7D%29%7B1000%7D", "size limit"),
        ("POST", "/logging", "level"),
        ("POST", "/logging?level=loud", "warn"),
    ] {
        let answer = world.ask(method, target).await;
        assert_eq!(answer.status, 400, "{target}");
        assert!(answer.json()["error"].as_str().unwrap().contains(words), "{target}: {}", answer.body);
    }
}

#[tokio::test]
async fn routes_carry_policies_and_numbers() {
    let world = World::start().await;
    let told = world.ask("GET", "/routes").await.json();
    let route = &told["listeners"][0]["virtual_hosts"][0]["routes"][0];
    assert_eq!(route["name"], HOSTILE);
    assert_eq!(route["summary"], "prefix /v1/ · 1 header · 1 query parameter · 25 % of requests");
    assert_eq!(route["action"]["forward"]["to"]["weighted_clusters"][0]["weight"], 90);
    assert_eq!(route["action"]["forward"]["to"]["weighted_clusters"][1]["known"], false);
    assert_eq!(route["rate_limit"]["tokens"], 7);
    assert_eq!(route["numbers"]["requests"], 100);
    assert_eq!(route["numbers"]["responses"]["2xx"], 100);
    assert_eq!(route["numbers"]["faults"][0]["kind"], "rate-limited");
    assert_eq!(route["numbers"]["faults"][0]["count"], 2);
    assert_eq!(route["numbers"]["retry_suppressed"]["budget"], 2);
    assert!(route["numbers"]["latency"]["p99_ms"].as_f64().unwrap() >= 4.9);
    assert_eq!(told["not_in_configuration"].as_array().unwrap().len(), 0);
    let text = world.ask("GET", "/routes?format=text").await.body;
    assert!(text.contains("per_try_timeout: 1.5s") && text.contains("onerror=alert(1)>\"\\\\n"), "{text}");
}

#[tokio::test]
async fn clusters_tell_methods_and_ejections_and_what_is_left_of_them() {
    let world = World::start().await;
    let told = world.ask("GET", "/clusters").await.json();
    let orders = &told["clusters"][0];
    let placing = serde_json::json!({
        "service": "shop.v1.Orders", "method": "Place", "calls": 8, "success_rate": 0.75,
        "codes": { "OK": 4, "NOT_FOUND": 2, "UNAVAILABLE": 2 }, "request_messages": 8, "response_messages": 32,
    });
    assert_eq!(orders["grpc_methods"], serde_json::json!([placing]));
    assert_eq!(told["clusters"][1]["grpc_methods"], serde_json::json!([]));
    assert_eq!(orders["name"], "orders");
    assert_eq!(orders["numbers"]["requests"], 7);
    let [ejected, idle] = [0, 1].map(|at| &orders["endpoints"][at]);
    assert_eq!(ejected["address"], "10.0.0.1:80");
    assert_eq!(ejected["state"]["is_ejected"], true);
    let left = ejected["state"]["ejection_remaining_ms"].as_u64().unwrap();
    assert!((3_000_000..=3_600_000).contains(&left), "{left}");
    assert_eq!(idle["health"], "draining");
    assert!(idle["state"].is_null());
}

#[tokio::test]
async fn epochs_tell_what_changed() {
    let world = World::start().await;
    let told = world.ask("GET", "/epochs").await.json();
    assert_eq!(told["current"], 1);
    assert_eq!(told["recent"][0]["published_unix_ms"], 1_700_000_000_000_u64);
    assert_eq!(told["recent"][0]["clusters"]["added"], serde_json::json!(["orders", "stock"]));
}

#[tokio::test]
async fn io_tells_the_reason() {
    let world = World::start().await;
    let told = world.ask("GET", "/io").await.json();
    assert_eq!(told["driver"], "epoll");
    assert_eq!(told["checks"][0]["passed"], false);
    assert_eq!(told["workers"][0]["turns"], 9);
}

/// `OUTRIGGER_BLESS=1 cargo test` writes the file anew.
#[test]
fn the_dump_of_one_of_everything_is_as_recorded() {
    let (snapshot, _) = Snapshot::link(3, &resources());
    let told = format!("{:#}\n", describe::snapshot(&snapshot));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/tests/config_dump.json");
    if std::env::var_os("OUTRIGGER_BLESS").is_some() {
        std::fs::write(path, &told).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap();
    for (at, (told, recorded)) in told.lines().zip(recorded.lines()).enumerate() {
        assert_eq!(told, recorded, "line {}", at + 1);
    }
    assert_eq!(told.lines().count(), recorded.lines().count());
}

#[test]
fn the_page_fetches_nothing_from_elsewhere_and_holds_no_inline_code() {
    for text in [page::HTML, page::CSS, page::JS] {
        let text = text.replace("http://www.w3.org/2000/svg", "");
        for banned in
            ["http:", "https:", "//cdn", "@import", "url(", "eval(", "innerHTML", "outerHTML", "document.write"]
        {
            assert!(!text.contains(banned), "{banned}");
        }
    }
    for banned in ["<script>", "<style", " style=", " onclick=", " onload=", "javascript:"] {
        assert!(!page::HTML.contains(banned), "{banned}");
    }
}
