//! Purpose: what the webhook does to pods, done to the pod templates of a file.
//! Shape: the text is split at its document marks; a document without a pod template goes through as it was written, one
//! with a template is written anew in its own order of keys. Lists are walked.
//! Errors: [`Problem`]s with the number of the document, counted from 1, and the object's name.
//! Limits: comments inside a changed document are lost, those before it are kept.
//! Source: YAML 1.2 §9.1 (a `---` in the first column always begins a document). Kubernetes reads YAML 1.1, where file modes
//! such as `0644` are octal.

use serde_yaml_ng::Value as Yaml;

use super::annotations::{INJECT, PREFIX};
use super::config::InjectorConfig;
use super::decide::{Decision, Outcome, decide};
use super::patch::apply;
use super::pod::Pod;
use crate::model::Problem;

const PROBLEMS_MAX: usize = 200;

/// A file after injection.
#[derive(Debug)]
pub struct Manifest {
    parts: Vec<Part>,
    /// What was done with each workload, for people.
    pub notes: Vec<String>,
}

#[derive(Debug)]
struct Part {
    /// As it was written, its mark included.
    text: String,
    value: Option<Yaml>,
    is_changed: bool,
}

impl Manifest {
    /// Injects into every workload of `text`; objects without a namespace are in `namespace`.
    pub fn inject(text: &str, namespace: &str, config: &InjectorConfig) -> Result<Self, Vec<Problem>> {
        let mut walk = Walk { namespace, config, notes: Vec::new(), problems: Vec::new(), document: 0 };
        let parts: Vec<Part> = split(text).into_iter().map(|text| walk.part(text)).collect();
        if parts.iter().all(|part| part.value.is_none()) && walk.problems.is_empty() {
            let message = "the input holds no object".to_owned();
            walk.problems.push(Problem { message, ..Problem::default() });
        }
        walk.problems.truncate(PROBLEMS_MAX);
        if walk.problems.is_empty() { Ok(Self { parts, notes: walk.notes }) } else { Err(walk.problems) }
    }

    /// The documents, those that did not change word for word.
    pub fn to_yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        let mut out = String::new();
        for part in &self.parts {
            let value = match &part.value {
                Some(value) if part.is_changed => value,
                _ => {
                    out.push_str(&part.text);
                    continue;
                }
            };
            let mark = part.text.lines().next().filter(|line| is_mark(line));
            let comments = part.text.lines().skip(usize::from(mark.is_some())).take_while(|line| is_empty(line));
            for line in mark.map(|_| "---").into_iter().chain(comments) {
                out.push_str(line);
                out.push('\n');
            }
            out.push_str(&serde_yaml_ng::to_string(value)?);
        }
        Ok(out)
    }

    /// The one object, or a List of all.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        let values: Result<Vec<serde_json::Value>, _> =
            self.parts.iter().filter_map(|part| part.value.as_ref()).map(serde_json::to_value).collect();
        let mut values = values?;
        Ok(match values.len() {
            1 => values.remove(0),
            _ => serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": values }),
        })
    }
}

fn is_mark(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

fn is_empty(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#')
}

/// Each document with the mark before it.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if is_mark(line.trim_end_matches(['\n', '\r'])) && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(String::new());
        }
        if let Some(part) = parts.last_mut() {
            part.push_str(line);
        }
    }
    // The next document's mark must begin a line.
    let last = parts.len() - 1;
    parts.iter_mut().take(last).filter(|part| !part.ends_with('\n')).for_each(|part| part.push('\n'));
    parts
}

/// Where the pod template of a kind is.
fn template_of(api_version: &str, kind: &str) -> Option<&'static [&'static str]> {
    match (api_version.split_once('/').map_or("", |(group, _)| group), kind) {
        ("", "Pod") => Some(&[]),
        ("", "PodTemplate") => Some(&["template"]),
        ("", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Some(&["spec", "template"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

struct Walk<'a> {
    namespace: &'a str,
    config: &'a InjectorConfig,
    notes: Vec<String>,
    problems: Vec<Problem>,
    document: usize,
}

impl Walk<'_> {
    fn part(&mut self, text: String) -> Part {
        let body = if text.lines().next().is_some_and(is_mark) { &text[3..] } else { text.as_str() };
        if body.lines().all(|line| is_empty(line) || line.starts_with('%') || line.trim_end() == "...") {
            return Part { text, value: None, is_changed: false };
        }
        self.document += 1;
        let mut read = serde_yaml_ng::from_str::<Yaml>(body);
        if let Ok(value) = &mut read
            && let Err(error) = value.apply_merge()
        {
            read = Err(error);
        }
        match read {
            Err(error) => {
                self.refuse(None, Problem { message: error.to_string(), ..Problem::default() });
                Part { text, value: Some(Yaml::Null), is_changed: false }
            }
            Ok(mut value) => {
                let is_changed = self.object(&mut value, None);
                Part { text, value: Some(value), is_changed }
            }
        }
    }

    fn refuse(&mut self, object: Option<&str>, problem: Problem) {
        let object = object.map(str::to_owned).or(problem.object);
        self.problems.push(Problem { document: Some(self.document), object, ..problem });
    }

    /// Whether anything changed. `of_list`: version and kind that the items of a typed list do not repeat.
    fn object(&mut self, value: &mut Yaml, of_list: Option<(&str, &str)>) -> bool {
        let text = |key: &str| value.get(key).and_then(Yaml::as_str).map(str::to_owned);
        let api_version = text("apiVersion").or(of_list.map(|(version, _)| version.to_owned())).unwrap_or_default();
        let kind = text("kind").or(of_list.map(|(_, kind)| kind.to_owned())).unwrap_or_default();
        if let (Some(item), Some(Yaml::Sequence(items))) = (kind.strip_suffix("List"), value.get_mut("items")) {
            let of_list = (!item.is_empty()).then_some((api_version.as_str(), item));
            let changed: Vec<bool> = items.iter_mut().map(|item| self.object(item, of_list)).collect();
            return changed.contains(&true);
        }
        let Some(path) = template_of(&api_version, &kind) else { return false };
        let metadata = |key: &str| value.get("metadata").and_then(|metadata| metadata.get(key)?.as_str());
        let namespace = metadata("namespace").unwrap_or(self.namespace).to_owned();
        let name = metadata("name").or(metadata("generateName")).unwrap_or("-");
        let object = format!("{kind} {namespace}/{name}");
        if !path.is_empty() {
            self.note_misplaced(value, &object);
        }
        let mut template = Some(&mut *value);
        for key in path {
            template = template.and_then(|value| value.get_mut(*key));
        }
        match template {
            Some(template) => self.template(template, &namespace, (&object, &path.join("."))),
            None => {
                let message = "is required and missing".to_owned();
                self.refuse(Some(&object), Problem { path: path.join("."), message, ..Problem::default() });
                false
            }
        }
    }

    fn template(&mut self, template: &mut Yaml, namespace: &str, (object, path): (&str, &str)) -> bool {
        read_octal_modes(template);
        let decided = match serde_path_to_error::deserialize::<_, Pod<'_>>(&*template) {
            Ok(pod) => decide(&pod, namespace, self.config),
            Err(error) => {
                let path = error.path().to_string();
                let message = error.into_inner().to_string();
                Err(vec![Problem { path, message, ..Problem::default() }])
            }
        };
        match decided {
            Ok(decision) => {
                let Some(changed) = apply(template.clone(), &decision.steps) else {
                    let message = "the sidecar does not fit in: a list or an object is something else there".to_owned();
                    self.refuse(Some(object), Problem { path: path.to_owned(), message, ..Problem::default() });
                    return false;
                };
                self.note(object, &decision);
                *template = changed;
                !decision.steps.is_empty()
            }
            Err(problems) => {
                for problem in problems {
                    let parts = [path, &problem.path].into_iter().filter(|part| !part.is_empty());
                    let path = parts.collect::<Vec<_>>().join(".");
                    self.refuse(Some(object), Problem { path, ..problem });
                }
                false
            }
        }
    }

    fn note(&mut self, object: &str, decision: &Decision) {
        let what = match decision.outcome {
            Outcome::Injected => "injected".to_owned(),
            Outcome::Present if decision.steps.is_empty() => "has its sidecar already".to_owned(),
            Outcome::Present => "has its sidecar already; brought up to date".to_owned(),
            Outcome::Skipped(reason) => format!("left alone: {}", reason.message()),
        };
        self.notes.push(format!("{object}: {what}"));
        let warnings = decision.warnings.iter().filter(|_| decision.outcome == Outcome::Injected);
        self.notes.extend(warnings.map(|warning| format!("{object}: {warning}")));
    }

    /// A setting beside the template is read by nobody.
    fn note_misplaced(&mut self, value: &Yaml, object: &str) {
        for group in ["annotations", "labels"] {
            let map = value.get("metadata").and_then(|metadata| metadata.get(group)?.as_mapping());
            let keys = map.into_iter().flat_map(|map| map.keys()).filter_map(Yaml::as_str);
            for key in keys.filter(|key| if group == "labels" { *key == INJECT } else { key.starts_with(PREFIX) }) {
                self.notes.push(format!(
                    "{object}: metadata.{group}[{key:?}] has no effect here; it belongs to the pod template's metadata"
                ));
            }
        }
    }
}

/// A YAML 1.2 reader takes `0644` for text, Kubernetes for a number.
fn read_octal_modes(value: &mut Yaml) {
    match value {
        Yaml::Mapping(map) => {
            for (key, value) in map.iter_mut() {
                let is_mode = matches!(key.as_str(), Some("defaultMode" | "mode"));
                let octal = value.as_str().filter(|text| is_mode && text.len() > 1 && text.starts_with('0'));
                match octal.and_then(|text| u32::from_str_radix(text, 8).ok()) {
                    Some(mode) => *value = Yaml::Number(mode.into()),
                    None => read_octal_modes(value),
                }
            }
        }
        Yaml::Sequence(list) => list.iter_mut().for_each(read_octal_modes),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inject(text: &str) -> Result<Manifest, Vec<Problem>> {
        Manifest::inject(text, "default", &InjectorConfig::default())
    }

    const DEPLOYMENT: &str = "# orders\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: orders, namespace: shop}\n\
        spec:\n  template:\n    spec:\n      containers:\n      - {name: app, image: orders:1}\n      volumes:\n      \
        - {name: v, configMap: {name: c, defaultMode: 0440}}\n";

    #[test]
    fn other_documents_go_through_as_they_were_written() {
        let other = "# kept\nkind: ConfigMap\napiVersion: v1\ndata: {a: 'b' , c: \"|\"}  # and this\n";
        let text = format!("%YAML 1.2\n---\n{other}--- # second\n{DEPLOYMENT}---\n# only words\n---\n{other}");
        let done = inject(&text).expect("a good file").to_yaml().expect("YAML");
        let (before, rest) = done.split_once("---\n# orders\n").expect("the Deployment keeps its comment");
        assert_eq!(before, format!("%YAML 1.2\n---\n{other}"));
        let (changed, after) = rest.split_once("---\n").expect("two more documents");
        assert_eq!(after, format!("# only words\n---\n{other}"));
        assert!(changed.starts_with("apiVersion: apps/v1\nkind: Deployment\n"), "{changed}");
        assert!(changed.contains("outrigger-intercept") && changed.contains("defaultMode: 288\n"), "{changed}");
    }

    #[test]
    fn twice_is_once() {
        let once = inject(DEPLOYMENT).expect("a good file").to_yaml().expect("YAML");
        let twice = inject(&once).expect("an injected file");
        assert_eq!(twice.notes, ["Deployment shop/orders: has its sidecar already"]);
        assert_eq!(twice.to_yaml().expect("YAML"), once);
    }

    #[test]
    fn lists_are_walked() {
        let item = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a}]}}";
        let list = format!("{{apiVersion: v1, kind: List, items: [{item}, {{kind: Secret, apiVersion: v1}}]}}");
        let done = inject(&list).expect("a List").to_json().expect("JSON");
        assert_eq!(done["items"][0]["spec"]["initContainers"][1]["name"], "outrigger-proxy");
        let typed = "{apiVersion: apps/v1, kind: DeploymentList, items: [{metadata: {name: a}, spec: {template: \
                     {spec: {containers: [{name: a}]}}}}]}";
        let done = inject(typed).expect("a typed List").to_json().expect("JSON");
        assert_eq!(done["items"][0]["spec"]["template"]["spec"]["initContainers"][0]["name"], "outrigger-intercept");
    }

    #[test]
    fn problems_name_document_object_and_path() {
        let bad = DEPLOYMENT.replace(
            "    spec:\n      c",
            "    metadata: {annotations: {outrigger.dev/workers: 2}}\n    spec:\n      c",
        );
        let text = format!("kind: ConfigMap\n---\n{bad}---\na: [\n---\n{{apiVersion: batch/v1, kind: CronJob}}\n");
        let problems = inject(&text).expect_err("three of four are wrong");
        let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert!(
            lines[0].starts_with("document 2 (Deployment shop/orders): spec.template.metadata.annotations"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("document 3: "), "{lines:?}");
        assert!(lines[2].starts_with("document 4 (CronJob default/-): spec.jobTemplate.spec.template: "), "{lines:?}");
        assert_eq!(inject("# nothing\n").expect_err("empty")[0].message, "the input holds no object");
    }
}
