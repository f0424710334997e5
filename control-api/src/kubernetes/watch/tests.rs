//! Pauses, pulses; and the loop against a server that says what real ones say seldom: 410, an end, an error, silence.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use axum::Router;
use axum::extract::{RawQuery, State as AppState};
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

proptest! {
    #[test]
    fn pauses_grow_to_their_bound_and_are_never_nothing(chances in proptest::collection::vec(any::<u64>(), 1..40)) {
        let mut pauses = Pauses::default();
        for (count, chance) in chances.into_iter().enumerate() {
            let whole = PAUSE_MIN.saturating_mul(1 << count.min(10)).min(PAUSE_MAX);
            let pause = pauses.next(chance);
            prop_assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
        }
    }
}

#[test]
fn a_view_ages_only_while_the_watch_does_not_stand() {
    let pulse = Pulse::new("services");
    assert!(!pulse.view().is_listed);
    pulse.note_listed(false);
    pulse.note_standing();
    assert_eq!(pulse.view().age, Duration::ZERO);
    pulse.note_failure("refused".to_owned());
    let view = pulse.view();
    assert_eq!((view.error.as_deref(), view.failures, view.is_listed), (Some("refused"), 1, true));
    pulse.note_standing();
    assert_eq!((pulse.view().age, pulse.view().error), (Duration::ZERO, None));
}

/// Answers in turn; each with what its request must say.
type Script = Arc<Mutex<VecDeque<(&'static str, u16, Value)>>>;

async fn answer(AppState(script): AppState<Script>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let next = script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let Some((wanted, status, body)) = next else {
        // The last watch stands for ever.
        return std::future::pending().await;
    };
    assert!(query.contains(wanted), "{query:?} should say {wanted:?}");
    let lines = match &body {
        Value::Array(events) => events.iter().map(|event| format!("{event}\n")).collect(),
        one => one.to_string(),
    };
    let status = axum::http::StatusCode::from_u16(status).expect("a status");
    (status, [("content-type", "application/json")], lines).into_response()
}

fn list(version: u64, names: &[&str]) -> Value {
    let items: Vec<Value> = names.iter().map(|name| service(version, name)).collect();
    json!({ "apiVersion": "v1", "kind": "ServiceList", "metadata": { "resourceVersion": version.to_string() }, "items": items })
}

fn service(version: u64, name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": version.to_string() } })
}

fn failure(code: u16) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "no", "reason": "Expired", "code": code })
}

/// What is seen of a scripted server, until so many events came.
async fn follow_script(script: Vec<(&'static str, u16, Value)>, count: usize) -> (Vec<String>, PulseView) {
    let script: Script = Arc::new(Mutex::new(script.into()));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address")).parse().expect("a URL");
    let router = Router::new().fallback(answer).with_state(script);
    let client = kube::Client::try_from(kube::Config::new(url)).expect("a client");
    let (sender, mut seen) = tokio::sync::mpsc::channel(16);
    let take = |event: Event<Service>| {
        let names =
            |list: &[Service]| list.iter().filter_map(|one| one.metadata.name.clone()).collect::<Vec<_>>().join(",");
        let line = match &event {
            Event::Listed(list) => format!("listed {}", names(list)),
            Event::Applied(one) => format!("applied {}", names(std::slice::from_ref(one))),
            Event::Deleted(one) => format!("deleted {}", names(std::slice::from_ref(one))),
        };
        let sender = sender.clone();
        async move {
            let _ = sender.send(line).await;
        }
    };
    let pulse = Pulse::new("services");
    let collect = async {
        let mut lines = Vec::new();
        while lines.len() < count {
            lines.extend(seen.recv().await);
        }
        lines
    };
    let lines = tokio::select! {
        _ = axum::serve(listener, router) => Vec::new(),
        () = follow(Api::all(client), pulse.clone(), take) => Vec::new(),
        lines = tokio::time::timeout(Duration::from_secs(20), collect) => lines.expect("all events in time"),
    };
    (lines, pulse.view())
}

fn run(script: Vec<(&'static str, u16, Value)>, count: usize) -> (Vec<String>, PulseView) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(follow_script(script, count))
}

#[test]
fn a_watch_goes_on_from_where_it_ended_and_lists_again_only_when_that_is_gone() {
    let bookmark = json!({ "type": "BOOKMARK", "object": { "apiVersion": "v1", "kind": "Service", "metadata":
        { "resourceVersion": "20", "annotations": {} } } });
    let (lines, view) = run(
        vec![
            ("limit=500", 200, list(10, &["a", "b"])),
            ("resourceVersion=10", 200, json!([{ "type": "ADDED", "object": service(12, "c") }])),
            // The server ended it; it goes on from the last version seen.
            ("resourceVersion=12", 200, json!([{ "type": "DELETED", "object": service(14, "a") }, bookmark])),
            ("resourceVersion=20", 200, json!([{ "type": "ERROR", "object": failure(410) }])),
            ("limit=500", 200, list(30, &["b", "c"])),
            ("resourceVersion=30", 410, failure(410)),
            ("limit=500", 200, list(31, &["c"])),
            ("resourceVersion=31", 500, failure(500)),
            ("resourceVersion=31", 200, json!([{ "type": "MODIFIED", "object": service(33, "c") }])),
        ],
        6,
    );
    assert_eq!(lines, ["listed a,b", "applied c", "deleted a", "listed b,c", "listed c", "applied c"]);
    assert_eq!((view.failures, view.is_listed, view.error), (1, true, None));
}

#[test]
fn a_list_that_fails_is_tried_again_and_a_page_is_followed() {
    let mut first = list(10, &["a"]);
    first["metadata"]["continue"] = json!("next");
    let (lines, _) = run(
        vec![
            ("limit=500", 503, failure(503)),
            ("limit=500", 200, first),
            ("continue=next", 200, list(10, &["b"])),
            ("resourceVersion=10", 200, json!([{ "type": "ADDED", "object": service(11, "c") }])),
        ],
        2,
    );
    assert_eq!(lines, ["listed a,b", "applied c"]);
}
