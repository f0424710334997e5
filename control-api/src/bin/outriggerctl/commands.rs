//! Purpose: what each command does and prints.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use outrigger_control::ads::ProxyView;
use outrigger_control::kubernetes::crd::render as render_definitions;
use outrigger_control::model::document::{Syntax, split_documents};
use outrigger_control::model::{Kind, Problem, parse_manifests};
use serde_json::{Value, json};

use crate::args::{Args, Command, Output};
use crate::client::{Body, Client, Failure};
use crate::inject;
use crate::lines::differ;
use crate::table::render;

/// Runs one command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Command::Completions { shell } = &args.command {
        clap_complete::generate(*shell, &mut Args::command(), "outriggerctl", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Crds = &args.command {
        print(&render_definitions())?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Inject { files, injector_config, namespace, list_annotations, output } = &args.command {
        let text = match list_annotations {
            true => inject::list(output.unwrap_or(Output::Table))?,
            false => inject::inject(files, injector_config.as_deref(), namespace, *output)?,
        };
        print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = Client::build(args)?;
    match &args.command {
        Command::Apply { files, dry_run, wait, timeout } => {
            let path = if *dry_run { "/v1/apply?dryRun=true" } else { "/v1/apply" };
            let answer = send_files(&client, path, files)?;
            print(&describe_changes(&answer))?;
            if *wait {
                let revision = answer.get("revision").and_then(Value::as_u64);
                wait_for(&client, revision, timeout, &[])?;
            }
        }
        Command::Completions { .. } | Command::Crds | Command::Inject { .. } => {}
        Command::Delete { kind: Some(kind), name: Some(name), namespace, force, .. } => {
            let kind = Kind::parse_loose(kind).map_err(Failure::refused)?;
            let path = format!("/v1/{kind}/{}/{}?force={force}", escape(namespace), escape(name));
            print(&describe_changes(&client.send("DELETE", &path, Body::None)?))?;
        }
        Command::Delete { files, force, .. } => {
            let path = format!("/v1/delete?force={force}");
            let answer = send_files(&client, &path, files)?;
            print(&describe_changes(&answer))?;
        }
        Command::Diff { files } => return diff(&client, files),
        Command::Get { kind, name, namespace, output } => {
            let items = fetch(&client, kind, name.as_deref(), namespace.as_deref())?;
            print(&show_objects(&items, *output, name.is_some())?)?;
        }
        Command::Proxies { output } => {
            let answer = client.send("GET", "/v1/proxies", Body::None)?;
            print(&show_proxies(&answer, *output)?)?;
        }
        Command::Wait { revision, timeout, proxies } => {
            wait_for(&client, *revision, timeout, proxies)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints; a reader that closed the pipe is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Files as one stream of documents.
struct Stream {
    text: String,
    /// Each file and how many documents it holds.
    files: Vec<(PathBuf, usize)>,
}

impl Stream {
    fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut stream = Self { text: String::new(), files: Vec::new() };
        for path in paths {
            let text = read_one(path)?;
            let (documents, problems) = split_documents(&text, Syntax::Yaml);
            stream.files.push((path.clone(), documents.len() + problems.len()));
            stream.text.push_str(&text);
            stream.text.push_str("\n---\n");
        }
        Ok(stream)
    }

    /// `document 3 ...` of the stream becomes `shop.yaml: document 1 ...`.
    fn name_files(&self, failure: Failure) -> Failure {
        let lines = failure.lines.into_iter().map(|line| self.name_file(&line).unwrap_or(line)).collect();
        Failure { lines, ..failure }
    }

    fn name_file(&self, line: &str) -> Option<String> {
        let rest = line.strip_prefix("document ")?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = rest.split_at(digits);
        let mut number: usize = number.parse().ok()?;
        for (path, count) in &self.files {
            if number <= *count {
                return Some(format!("{}: document {number}{rest}", path.display()));
            }
            number -= count;
        }
        None
    }
}

fn send_files(client: &Client, path: &str, files: &[PathBuf]) -> Result<Value, Failure> {
    let stream = Stream::read(files)?;
    client.send("POST", path, Body::Yaml(&stream.text)).map_err(|failure| stream.name_files(failure))
}

pub(crate) fn read_one(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        return read.map(|_| text).map_err(|error| Failure::refused(format!("standard input: {error}")));
    }
    std::fs::read_to_string(path)
        .map_err(|error| Failure::refused(format!("{}: {error}; check the path given with -f", path.display())))
}

/// A name in a path; what is not allowed in names is escaped and so not found.
fn escape(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn describe_changes(answer: &Value) -> String {
    let objects = answer.get("objects").and_then(Value::as_array);
    let suffix = if answer.get("dryRun") == Some(&json!(true)) { " (dry run)" } else { "" };
    let mut lines: String = objects
        .into_iter()
        .flatten()
        .map(|one| {
            let (kind, namespace) = (text(one, "/kind"), text(one, "/namespace"));
            format!("{kind} {namespace}/{} {}{suffix}\n", text(one, "/name"), text(one, "/change"))
        })
        .collect();
    if let Some(revision) = answer.get("revision").filter(|_| suffix.is_empty()) {
        lines.push_str(&format!("revision {revision}\n"));
    }
    lines
}

fn wait_for(client: &Client, revision: Option<u64>, timeout: &str, proxies: &[String]) -> Result<(), Failure> {
    let mut body = json!({ "timeout": timeout });
    if let Some(revision) = revision {
        body["revision"] = json!(revision);
    }
    if !proxies.is_empty() {
        body["proxies"] = json!(proxies);
    }
    let answer = client.send("POST", "/v1/wait", Body::Json(&body.to_string()));
    let answer = answer.map_err(|failure| match failure.code {
        // A proxy that refused is no fault of the command line.
        2 if failure.lines.iter().any(|line| line.contains("does not run everywhere")) => {
            Failure { code: 1, ..failure }
        }
        _ => failure,
    })?;
    let running = answer.get("running").and_then(Value::as_array).map_or(0, Vec::len);
    let revision = answer.get("revision").cloned().unwrap_or_default();
    let plural = if running == 1 { "proxy runs" } else { "proxies run" };
    print(&format!("{running} {plural} revision {revision}\n"))
}

fn fetch(client: &Client, kind: &str, name: Option<&str>, namespace: Option<&str>) -> Result<Vec<Value>, Failure> {
    if kind.eq_ignore_ascii_case("all") && name.is_none() {
        let lists: Result<Vec<Vec<Value>>, Failure> =
            Kind::ALL.iter().map(|kind| fetch(client, kind.as_str(), None, namespace)).collect();
        return Ok(lists?.concat());
    }
    let kind = Kind::parse_loose(kind).map_err(Failure::refused)?;
    let path = match (namespace, name) {
        (namespace, Some(name)) => {
            let namespace = namespace.unwrap_or("default");
            let path = format!("/v1/{kind}/{}/{}", escape(namespace), escape(name));
            return Ok(vec![client.send("GET", &path, Body::None)?]);
        }
        (Some(namespace), None) => format!("/v1/{kind}/{}", escape(namespace)),
        (None, None) => format!("/v1/{kind}"),
    };
    let mut list = client.send("GET", &path, Body::None)?;
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Ok(Vec::new()),
    }
}

fn show_objects(items: &[Value], output: Output, is_one: bool) -> Result<String, Failure> {
    match output {
        Output::Json if is_one => Ok(pretty(items.first().unwrap_or(&Value::Null))),
        Output::Json => Ok(pretty(&json!({ "apiVersion": "v1", "kind": "List", "items": items }))),
        Output::Yaml => items.iter().map(to_yaml).collect::<Result<Vec<_>, _>>().map(|all| all.join("---\n")),
        Output::Table if items.is_empty() => Ok("nothing found\n".to_owned()),
        Output::Table => {
            let rows: Vec<Vec<String>> = items.iter().map(object_row).collect();
            Ok(render(&["KIND", "NAMESPACE", "NAME", "REVISION", "SUMMARY"], &rows))
        }
    }
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

pub(crate) fn to_yaml(value: &Value) -> Result<String, Failure> {
    serde_yaml_ng::to_string(value).map_err(|error| Failure::failed(error.to_string()))
}

fn object_row(object: &Value) -> Vec<String> {
    let cell = |pointer| text(object, pointer).to_owned();
    vec![
        cell("/kind"),
        cell("/metadata/namespace"),
        cell("/metadata/name"),
        cell("/metadata/resourceVersion"),
        summary(object),
    ]
}

fn summary(object: &Value) -> String {
    let list = |pointer: &str| object.pointer(pointer).and_then(Value::as_array);
    let names = |pointer: &str, field: &str| -> String {
        let items = list(pointer).into_iter().flatten();
        items.map(|item| text(item, &format!("/{field}"))).collect::<Vec<_>>().join(",")
    };
    match text(object, "/kind") {
        "GRPCRoute" | "HTTPRoute" => {
            let rules = list("/spec/rules").map_or(0, Vec::len);
            let backends: Vec<String> = list("/spec/rules")
                .into_iter()
                .flatten()
                .filter_map(|rule| rule.get("backendRefs")?.as_array())
                .flatten()
                .map(|backend| {
                    let weight = backend.get("weight").map_or(1, |w| w.as_u64().unwrap_or(1));
                    format!("{}={weight}", text(backend, "/name"))
                })
                .collect();
            let parents = names("/spec/parentRefs", "name");
            format!("for {parents}; {rules} rule(s) to {}", backends.join(","))
        }
        "AccessPolicy" => {
            let word = |pointer, default| object.pointer(pointer).and_then(Value::as_str).unwrap_or(default);
            let rules = list("/spec/rules").map_or(0, Vec::len);
            let at = if list("/spec/targetRefs").is_some() {
                names("/spec/targetRefs", "name")
            } else {
                "every pod".to_owned()
            };
            let is_audit = word("/spec/mode", "Enforce") == "Audit";
            let mode = if is_audit { ", counted only" } else { "" };
            format!("{} by {rules} rule(s) at {at}{mode}", word("/spec/action", "Allow"))
        }
        "MeshConfig" => {
            let spec = object.get("spec").and_then(Value::as_object);
            let set: Vec<&str> = spec.into_iter().flat_map(|spec| spec.keys()).map(String::as_str).collect();
            format!("sets {}", if set.is_empty() { "nothing".to_owned() } else { set.join(", ") })
        }
        "Upstream" => format!("{} endpoint(s)", list("/spec/endpoints").map_or(0, Vec::len)),
        "RateLimit" => {
            let requests = object.pointer("/spec/requests").cloned().unwrap_or_default();
            let per = object.pointer("/spec/per").and_then(Value::as_str).unwrap_or("1s");
            format!("{requests} per {per} on {}", names("/spec/targetRefs", "name"))
        }
        _ => format!("on {}", names("/spec/targetRefs", "name")),
    }
}

fn show_proxies(answer: &Value, output: Output) -> Result<String, Failure> {
    match output {
        Output::Json => return Ok(pretty(answer)),
        Output::Yaml => return to_yaml(answer),
        Output::Table => {}
    }
    let proxies = answer.get("proxies").cloned().unwrap_or_default();
    let proxies: Vec<ProxyView> = serde_json::from_value(proxies)
        .map_err(|error| Failure::failed(format!("the server is of another version: {error}")))?;
    if proxies.is_empty() {
        return Ok("no proxy is connected\n".to_owned());
    }
    let rows: Vec<Vec<String>> = proxies
        .iter()
        .map(|proxy| {
            let running = proxy.running_revision.map_or("-".to_owned(), |number| number.to_string());
            vec![
                proxy.node.clone(),
                proxy.namespace.clone(),
                proxy.address.clone(),
                running,
                proxy.desired_revision.to_string(),
                state_of(proxy),
            ]
        })
        .collect();
    Ok(render(&["NODE", "NAMESPACE", "ADDRESS", "RUNS", "NEWEST", "STATE"], &rows))
}

fn state_of(proxy: &ProxyView) -> String {
    let refusal = proxy
        .types
        .iter()
        .find_map(|(kind, view)| view.nack_message.as_ref().map(|message| format!("refused {kind}: {message}")));
    let pending: Vec<&str> =
        proxy.types.iter().filter(|(_, view)| view.pending_version.is_some()).map(|(kind, _)| kind.as_str()).collect();
    match refusal {
        Some(refusal) => refusal,
        None if !pending.is_empty() => format!("has not answered {}", pending.join(", ")),
        None if proxy.running_revision == Some(proxy.desired_revision) => "in sync".to_owned(),
        None => "connecting".to_owned(),
    }
}

fn diff(client: &Client, files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let stream = Stream::read(files)?;
    let manifests = parse_manifests(&stream.text, Syntax::Yaml).map_err(|problems| {
        let lines = problems.iter().map(Problem::to_string).collect();
        stream.name_files(Failure { code: 2, lines })
    })?;
    let mut is_same = true;
    for manifest in &manifests {
        let key = &manifest.key;
        let path = format!("/v1/{}/{}/{}", key.kind, escape(&key.namespace), escape(&key.name));
        let stored = match client.send("GET", &path, Body::None) {
            Ok(mut stored) => {
                if let Some(Value::Object(metadata)) = stored.get_mut("metadata") {
                    metadata.remove("resourceVersion");
                    metadata.remove("generation");
                }
                to_yaml(&stored)?
            }
            Err(failure) if failure.lines.iter().any(|line| line.ends_with("does not exist")) => String::new(),
            Err(failure) => return Err(failure),
        };
        let changes = differ(&stored, &to_yaml(&manifest.body)?);
        if !changes.is_empty() {
            is_same = false;
            print(&format!("--- stored {key}\n+++ given {key}\n{}\n", changes.join("\n")))?;
        }
    }
    Ok(if is_same { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
