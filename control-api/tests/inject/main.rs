//! Recorded reviews: what the webhook answers to each is kept in `golden.txt`, and a manifest gets the same pod byte for byte.

mod cases;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use cases::{Case, all, config, large, plain};
use outrigger_control::inject::annotations::TABLE;
use outrigger_control::inject::manifest::Manifest;
use outrigger_control::webhook::review::answer;
use serde_json::{Value, json};

/// HTTP status, the answer without its patch, and the pod after it.
struct Seen {
    status: u16,
    answer: Value,
    pod: Option<Value>,
}

fn ask(case: &Case) -> Seen {
    let answer = answer(&case.body, &config());
    let mut value: Value = serde_json::from_str(&answer.body).expect("an answer is JSON");
    let mut pod = case.pod.clone().filter(|_| value["response"]["allowed"] == true);
    if let Some(patch) = value["response"].as_object_mut().and_then(|response| response.remove("patch")) {
        let patch = decode(patch.as_str().expect("text"));
        let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a JSON Patch");
        if let Some(pod) = &mut pod {
            json_patch::patch(pod, &patch).expect("the patch fits the pod");
        }
    }
    Seen { status: answer.status, answer: value, pod }
}

fn decode(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
}

/// A value as `path = leaf` lines.
fn flatten(value: &Value, path: &str, lines: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| flatten(value, &format!("{path}.{key}"), lines));
        }
        Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(index, value)| flatten(value, &format!("{path}[{index}]"), lines));
        }
        leaf => drop(lines.insert(path.to_owned(), leaf.to_string())),
    }
}

fn lines_of(pod: &Value) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    flatten(pod, "pod", &mut lines);
    lines
}

/// The first case whole, the others by what differs from it.
fn record() -> String {
    let mut text = String::new();
    let mut first: Option<BTreeMap<String, String>> = None;
    for case in all() {
        let seen = ask(&case);
        writeln!(text, "== {}", case.name).expect("a string");
        match seen.answer.get("response") {
            Some(response) => writeln!(text, "{response}").expect("a string"),
            None => writeln!(text, "HTTP {}: {}", seen.status, seen.answer).expect("a string"),
        }
        let Some(pod) = seen.pod else { continue };
        let lines = lines_of(&pod);
        let base = first.clone().unwrap_or_default();
        for (path, leaf) in base.iter().filter(|(path, leaf)| lines.get(*path) != Some(leaf)) {
            writeln!(text, "- {path} = {leaf}").expect("a string");
        }
        for (path, leaf) in lines.iter().filter(|(path, leaf)| base.get(*path) != Some(leaf)) {
            writeln!(text, "+ {path} = {leaf}").expect("a string");
        }
        first.get_or_insert(lines);
    }
    text
}

#[test]
fn the_answers_are_the_recorded_ones() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/inject/golden.txt");
    let seen = record();
    if std::env::var_os("OUTRIGGER_BLESS").is_some() {
        std::fs::write(path, &seen).expect("the record can be written");
    }
    let kept = std::fs::read_to_string(path).expect("golden.txt is there; OUTRIGGER_BLESS=1 writes it");
    let differs = kept.lines().zip(seen.lines()).enumerate().find(|(_, (kept, seen))| kept != seen);
    if let Some((number, (kept, seen))) = differs {
        panic!("golden.txt line {}: OUTRIGGER_BLESS=1 writes it anew\n  kept: {kept}\n  seen: {seen}", number + 1);
    }
    assert_eq!(kept.lines().count(), seen.lines().count(), "one is longer: OUTRIGGER_BLESS=1 writes it anew");
}

#[test]
fn there_are_enough_cases_and_each_annotation_has_some() {
    let cases = all();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "names are unique");
    for row in TABLE {
        let of_row = |case: &&Case| case.name.starts_with(&format!("{}: ", row.name));
        let allowed: Vec<bool> =
            cases.iter().filter(of_row).map(|case| ask(case).answer["response"]["allowed"] == true).collect();
        let is_written = row.form == outrigger_control::inject::form::Form::Written;
        assert!(allowed.contains(&true) && (is_written || allowed.contains(&false)), "{}: {allowed:?}", row.name);
    }
}

#[test]
fn twice_is_once() {
    for case in all() {
        let Some(pod) = ask(&case).pod else { continue };
        // What is asked for anew is made anew, and is the same.
        let body = cases::review(&pod, &case.namespace).to_string().into_bytes();
        let again = ask(&Case { body, pod: Some(pod.clone()), ..case.clone() });
        assert_eq!(again.pod.as_ref(), Some(&pod), "{}", case.name);
    }
}

/// A workload of the kind with the pod as its template.
fn workload(kind: &str, pod: &Value) -> (Value, String) {
    let mut template = json!({});
    for key in ["metadata", "spec"] {
        if let Some(part) = pod.get(key) {
            template[key] = part.clone();
        }
    }
    let (version, pointer, spec) = match kind {
        "Pod" => return (pod.clone(), String::new()),
        "Job" => ("batch/v1", "/spec/template", json!({ "template": template })),
        "CronJob" => {
            let job = json!({ "spec": { "template": template } });
            ("batch/v1", "/spec/jobTemplate/spec/template", json!({ "schedule": "@daily", "jobTemplate": job }))
        }
        _ => ("apps/v1", "/spec/template", json!({ "selector": {}, "template": template })),
    };
    (json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "w" }, "spec": spec }), pointer.to_owned())
}

#[test]
fn a_manifest_gets_what_the_webhook_makes() {
    let kinds = ["Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"];
    for (number, case) in all().into_iter().enumerate() {
        let Some(pod) = &case.pod else { continue };
        let seen = ask(&case);
        // Every kind in turn: the walk to the template is all that differs.
        let (document, pointer) = workload(kinds[number % kinds.len()], pod);
        let text = serde_yaml_ng::to_string(&document).expect("YAML");
        let namespace = document.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or(&case.namespace);
        if namespace != case.namespace {
            continue;
        }
        match (Manifest::inject(&text, &case.namespace, &config()), seen.pod) {
            (Ok(manifest), Some(patched)) => {
                let done = manifest.to_json().expect("JSON");
                let template = done.pointer(&pointer).expect("the template stays where it was");
                for key in ["metadata", "spec"] {
                    let bytes = |value: &Value| value.get(key).map(Value::to_string);
                    assert_eq!(bytes(template), bytes(&patched), "{}", case.name);
                }
                let text = manifest.to_yaml().expect("YAML");
                let read: Value = serde_yaml_ng::from_str(&text).expect("what was written can be read");
                assert_eq!(read, done, "{}", case.name);
            }
            // What cannot be read is said otherwise by the two readers.
            (Err(_), None) if seen.answer["response"]["status"]["code"] == 400 => {}
            (Err(problems), None) => {
                let message = seen.answer["response"]["status"]["message"].as_str().expect("a refusal").to_owned();
                for problem in problems {
                    assert!(message.contains(&problem.message) || message.ends_with("..."), "{message}\n{problem}");
                }
            }
            (offline, online) => panic!("{}: the two disagree: {offline:?}\n{online:?}", case.name),
        }
    }
}

#[test]
fn large_pods_are_answered_too() {
    for case in large() {
        assert!((2_800_000..3_407_872).contains(&case.body.len()), "{}: {} bytes", case.name, case.body.len());
        let seen = ask(&case);
        let pod = seen.pod.unwrap_or_else(|| panic!("{}: {}", case.name, seen.answer));
        assert_eq!(pod["spec"]["initContainers"][1]["name"], "outrigger-proxy", "{}", case.name);
        let containers = pod["spec"]["containers"].as_array().expect("a list");
        assert!(containers.iter().all(|one| one["lifecycle"]["preStop"]["httpGet"]["port"] == 15_020), "{}", case.name);
    }
}

fn ctl(args: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outriggerctl"))
        .arg("inject")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that refuses its flags does not read its input.
    let _ = child.stdin.take().expect("piped above").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_injects_refuses_and_lists() {
    let (document, _) = workload("Deployment", &plain());
    let service = "# the service\nkind: Service\napiVersion: v1\nmetadata: {name: orders}\n";
    let text = format!("{service}---\n{}", serde_yaml_ng::to_string(&document).expect("YAML"));
    let (code, out, notes) = ctl(&["-f", "-"], &text);
    assert_eq!((code, notes.as_str()), (0, "outriggerctl: Deployment default/w: injected\n"));
    assert!(out.starts_with(service) && out.contains("outrigger-intercept"), "{out}");
    let (code, again, _) = ctl(&["-f", "-"], &out);
    assert_eq!((code, again), (0, out), "twice is once");
    let (code, json, _) = ctl(&["-f", "-", "-o", "json"], &text);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (code, &json["items"][1]["spec"]["template"]["spec"]["initContainers"][0]["name"]),
        (0, &json!("outrigger-intercept"))
    );
    let bad = text.replace("note: kept", "outrigger.dev/log-levl: info");
    let (code, out, errors) = ctl(&["-f", "-"], &bad);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        errors.starts_with("outriggerctl: -: document 2 (Deployment default/w): spec.template.metadata.annotations"),
        "{errors}"
    );
    assert!(errors.contains("did you mean log-level?"), "{errors}");
    assert_eq!(ctl(&["-f", "/nowhere.yaml"], "").0, 2);
    assert_eq!(ctl(&["-f", "-", "--injector-config", "/nowhere.yaml"], &text).0, 2);
    assert_eq!(ctl(&[], "").0, 2);
    let (code, list, _) = ctl(&["--list-annotations"], "");
    assert!(
        code == 0 && list.lines().count() == TABLE.len() + 1 && list.contains("outrigger.dev/drain-time"),
        "{list}"
    );
    let (_, list, _) = ctl(&["--list-annotations", "-o", "json"], "");
    let list: Value = serde_json::from_str(&list).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(TABLE.len()));
}
