//! Purpose: an AdmissionReview in, its answer out.
//! Shape: pure; the envelope and the pod inside it are read in one go. Where that fails, the envelope is read alone: what is
//! wrong with a pod is told only where it is to be looked at.
//! Errors: what is no review gets an HTTP status and a sentence; a pod that cannot be is refused inside the review, where
//! whoever made it reads it.
//! Limits: the server bounds the size. Depth costs nothing: what nobody looks at is stepped over without recursion.
//! Source: Kubernetes, admission.k8s.io/v1 AdmissionReview; only v1.
//! Tests: foot of this file; `tests/inject`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::figures::Verdict;
use crate::inject::patch::{Step, to_json};
use crate::inject::{Decision, InjectorConfig, Outcome, Pod, decide};
use crate::model::Problem;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
const UID_BYTES_MAX: usize = 256;
/// A message longer than this reaches nobody whole.
const MESSAGE_CHARS_MAX: usize = 4_000;

/// What is sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status of HTTP.
    pub status: u16,
    /// JSON.
    pub body: String,
    /// For the figures.
    pub verdict: Verdict,
}

impl Answer {
    /// An answer to what is no review.
    #[must_use]
    pub fn malformed(status: u16, message: &str) -> Self {
        let body = json!({ "error": { "status": status, "message": message } }).to_string();
        Self { status, body, verdict: Verdict::Malformed }
    }
}

/// A review whose object is read as `O`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<O> {
    api_version: Option<String>,
    kind: Option<String>,
    request: Option<Request<O>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request<O> {
    uid: Option<String>,
    kind: Option<GroupKind>,
    sub_resource: Option<String>,
    namespace: Option<String>,
    operation: Option<String>,
    object: Option<O>,
}

#[derive(Deserialize, Default)]
struct GroupKind {
    group: Option<String>,
    kind: Option<String>,
}

/// Answers the body of a request.
#[must_use]
pub fn answer(body: &[u8], config: &InjectorConfig) -> Answer {
    // Checked at once rather than string by string, of which a large review has very many.
    let Ok(text) = std::str::from_utf8(body) else {
        return Answer::malformed(400, "the body is not an AdmissionReview: it is not UTF-8");
    };
    match serde_json::from_str::<Review<Pod<'_>>>(text) {
        Ok(review) => answer_review(review, config, Ok),
        Err(_) => match serde_json::from_str::<Review<&RawValue>>(text) {
            Ok(review) => answer_review(review, config, read_pod),
            Err(error) => Answer::malformed(400, &format!("the body is not an AdmissionReview: {error}")),
        },
    }
}

fn answer_review<'a, O>(
    review: Review<O>,
    config: &InjectorConfig,
    read: impl FnOnce(O) -> Result<Pod<'a>, String>,
) -> Answer {
    let (version, kind) = (review.api_version.unwrap_or_default(), review.kind.unwrap_or_default());
    if (version.as_str(), kind.as_str()) != (API_VERSION, KIND) {
        let found = format!("{kind:.80} of {version:.80}");
        return Answer::malformed(400, &format!("the body is a {found:?}; only {KIND} of {API_VERSION} is answered"));
    }
    let Some(request) = review.request else {
        return Answer::malformed(400, "request: is required and missing; is this an answer?");
    };
    let uid = request.uid.clone().unwrap_or_default();
    if uid.is_empty() || uid.len() > UID_BYTES_MAX {
        return Answer::malformed(400, &format!("request.uid: must have 1 to {UID_BYTES_MAX} bytes"));
    }
    respond(&uid, request, config, read)
}

fn respond<'a, O>(
    uid: &str,
    request: Request<O>,
    config: &InjectorConfig,
    read: impl FnOnce(O) -> Result<Pod<'a>, String>,
) -> Answer {
    let kind = request.kind.as_ref();
    let is_pod = kind.is_some_and(|kind| {
        kind.group.as_deref().unwrap_or_default().is_empty() && kind.kind.as_deref() == Some("Pod")
    });
    let is_whole = request.sub_resource.as_deref().unwrap_or_default().is_empty();
    if !is_pod || !is_whole || request.operation.as_deref() != Some("CREATE") {
        return allow(uid, Verdict::Ignored, None);
    }
    let Some(object) = request.object else {
        return refuse(uid, 400, "BadRequest", "request.object: is required and missing");
    };
    let pod = match read(object) {
        Ok(pod) => pod,
        Err(message) => return refuse(uid, 400, "BadRequest", &message),
    };
    match decide(&pod, request.namespace.as_deref().unwrap_or_default(), config) {
        Ok(decision) => {
            let verdict = match decision.outcome {
                Outcome::Injected => Verdict::Injected,
                Outcome::Present => Verdict::Present,
                Outcome::Skipped(_) => Verdict::Skipped,
            };
            allow(uid, verdict, Some(&decision))
        }
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
            refuse(uid, 422, "Invalid", &format!("outrigger: {}", lines.join("\n")))
        }
    }
}

/// Reads a pod with an eye on where it goes wrong.
fn read_pod(object: &RawValue) -> Result<Pod<'_>, String> {
    let mut reader = serde_json::Deserializer::from_str(object.get());
    serde_path_to_error::deserialize::<_, Pod<'_>>(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        format!("outrigger: the pod cannot be read: {path}: {}", error.into_inner())
    })
}

fn allow(uid: &str, verdict: Verdict, decision: Option<&Decision>) -> Answer {
    let steps = decision.map(|decision| decision.steps.as_slice()).filter(|steps| !steps.is_empty());
    let response = Response {
        allowed: true,
        patch_type: steps.map(|_| "JSONPatch"),
        status: None,
        uid,
        warnings: decision.map(|decision| decision.warnings.as_slice()).unwrap_or_default(),
    };
    let mut answer = reply(&response, verdict);
    if let Some(steps) = steps {
        add_patch(&mut answer.body, steps);
    }
    answer
}

/// Writes a patch, which may be as large as its pod, to the end of the response: base64 needs no look for escapes.
fn add_patch(body: &mut String, steps: &[Step]) {
    const END: &str = "}}";
    const START: &str = r#","patch":""#;
    let patch = to_json(steps);
    body.truncate(body.len() - END.len());
    body.reserve(START.len() + patch.len().div_ceil(3) * 4 + 1 + END.len());
    body.push_str(START);
    STANDARD.encode_string(patch, body);
    body.push('"');
    body.push_str(END);
}

fn refuse(uid: &str, code: u16, reason: &str, message: &str) -> Answer {
    let mut message: String = message.to_owned();
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
        message.truncate(end);
        message.push_str("...");
    }
    let status = json!({ "code": code, "message": message, "reason": reason, "status": "Failure" });
    let status = Some(status);
    let response = Response { allowed: false, patch_type: None, status, uid, warnings: &[] };
    reply(&response, Verdict::Refused)
}

/// What becomes of a pod, as the API server reads it, but for the patch.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    uid: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: &'a Response<'a>,
}

fn reply(response: &Response<'_>, verdict: Verdict) -> Answer {
    let reply = Reply { api_version: API_VERSION, kind: KIND, response };
    // As above: it cannot fail.
    Answer { status: 200, body: serde_json::to_string(&reply).unwrap_or_default(), verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str) -> (u16, Value) {
        let answer = answer(body.as_bytes(), &InjectorConfig::default());
        (answer.status, serde_json::from_str(&answer.body).expect("JSON"))
    }

    fn review(request: &Value) -> String {
        json!({ "apiVersion": API_VERSION, "kind": KIND, "request": request }).to_string()
    }

    #[test]
    fn what_is_no_review_gets_a_status_and_a_sentence() {
        for (body, wanted) in [
            ("", "not an AdmissionReview"),
            ("{", "not an AdmissionReview"),
            ("[]", "not an AdmissionReview"),
            ("\u{0}", "not an AdmissionReview"),
            ("{}", "only AdmissionReview of admission.k8s.io/v1"),
            (r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#, "v1beta1"),
            (r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{}}"#, "request: is required"),
            (r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#, "request.uid"),
            (r#"{"kind":"AdmissionReview","kind":"AdmissionReview"}"#, "duplicate field"),
        ] {
            let (status, answer) = asked(body);
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert!(status == 400 && message.contains(wanted), "{body}: {status} {message}");
        }
        assert!(answer(&[0xff, 0xfe], &InjectorConfig::default()).status == 400);
    }

    #[test]
    fn depth_is_stepped_over() {
        let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
        let pod = format!(r#"{{"metadata":{{}},"spec":{{"containers":[{{"name":"a"}}],"x":{deep}}}}}"#);
        let text = review(&json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE" }));
        let text = text.replace(r#""uid":"u""#, &format!(r#""uid":"u","object":{pod}"#));
        let (status, answer) = asked(&text);
        assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(true)), "{answer}");
        assert!(answer["response"]["patch"].is_string());
    }

    #[test]
    fn what_is_not_a_new_pod_passes() {
        let pod = json!({ "spec": { "containers": [{ "name": "a" }] } });
        for request in [
            json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "UPDATE", "object": pod }),
            json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "DELETE", "object": null }),
            json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE", "subResource": "binding", "object": pod }),
            json!({ "uid": "u", "kind": { "group": "apps", "kind": "Deployment" }, "operation": "CREATE", "object": 3 }),
            json!({ "uid": "u", "kind": { "group": "metrics.k8s.io", "kind": "Pod" }, "operation": "CREATE", "object": {} }),
        ] {
            let (status, answer) = asked(&review(&request));
            assert_eq!((status, &answer["response"]), (200, &json!({ "uid": "u", "allowed": true })), "{request}");
        }
    }

    #[test]
    fn an_unreadable_pod_is_refused_with_the_place() {
        let pod = json!({ "spec": { "containers": [{ "name": "a" }, { "ports": 80 }] } });
        let request = json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE", "object": pod });
        let (_, answer) = asked(&review(&request));
        let message = answer["response"]["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("spec.containers[1].ports: invalid type"), "{message}");
        let request = json!({ "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE" });
        let (_, answer) = asked(&review(&request));
        assert_eq!(answer["response"]["status"]["code"], 400);
    }
}
