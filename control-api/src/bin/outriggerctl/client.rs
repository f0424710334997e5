//! Purpose: one request to the control plane, and its refusal as lines for a person.

use std::path::Path;
use std::time::Duration;

use outrigger_control::model::Problem;
use serde_json::Value;

use crate::args::Args;

const SERVER: &str = "http://127.0.0.1:15080";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server answers a wait after 10 minutes at most.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(620);

/// Why a command did not do what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code.
    pub(crate) code: u8,
    /// What to say.
    pub(crate) lines: Vec<String>,
}

impl Failure {
    /// The input was refused.
    pub(crate) fn refused(line: impl Into<String>) -> Self {
        Self { code: 2, lines: vec![line.into()] }
    }

    /// It failed while running.
    pub(crate) fn failed(line: impl Into<String>) -> Self {
        Self { code: 1, lines: vec![line.into()] }
    }
}

/// The control plane.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    server: String,
    authorization: Option<String>,
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    Json(&'a str),
    None,
    Yaml(&'a str),
}

impl Client {
    pub(crate) fn build(args: &Args) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let server = args.server.clone().or(variable("OUTRIGGER_SERVER")).unwrap_or(SERVER.into());
        let server = if server.contains("://") { server } else { format!("http://{server}") };
        if server.starts_with("https://") {
            return Err(Failure::refused(format!(
                "--server {server}: only http:// is spoken; reach a remote server through a tunnel"
            )));
        }
        let token_file = args.token_file.clone().or(variable("OUTRIGGER_TOKEN_FILE").map(Into::into));
        let authorization = token_file.map(|path| read_token(&path)).transpose()?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .proxy(None)
            .build()
            .new_agent();
        Ok(Self { agent, server: server.trim_end_matches('/').to_owned(), authorization })
    }

    /// Sends one request; the body of a success, or why not.
    pub(crate) fn send(&self, method: &str, path: &str, body: Body<'_>) -> Result<Value, Failure> {
        let (status, text) = self.exchange(method, path, body)?;
        let answer: Value = serde_json::from_str(&text).map_err(|_| {
            Failure::failed(format!(
                "{} answered {status} without JSON; is it an Outrigger control plane?",
                self.server
            ))
        })?;
        if (200..300).contains(&status) { Ok(answer) } else { Err(refusal(status, &answer)) }
    }

    fn exchange(&self, method: &str, path: &str, body: Body<'_>) -> Result<(u16, String), Failure> {
        let unreachable = |error: ureq::Error| {
            Failure::failed(format!(
                "cannot reach {}: {error}; start it with outrigger-control, or say where it is \
                 with --server or OUTRIGGER_SERVER",
                self.server
            ))
        };
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.server));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let (content_type, text) = match body {
            Body::Json(text) => ("application/json", text),
            Body::Yaml(text) => ("application/yaml", text),
            Body::None => ("", ""),
        };
        let invalid = |error: ureq::http::Error| {
            Failure::refused(format!("--server {}: {error}; write it like {SERVER}", self.server))
        };
        let response = if content_type.is_empty() {
            self.agent.run(request.body(()).map_err(invalid)?)
        } else {
            let request = request.header("content-type", content_type);
            self.agent.run(request.body(text.to_owned()).map_err(invalid)?)
        };
        let mut response = response.map_err(unreachable)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(256 << 20).read_to_string();
        Ok((status, text.map_err(unreachable)?))
    }
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::refused(format!("--token-file {}: {error}", path.display())))?;
    Ok(format!("Bearer {}", text.trim()))
}

/// One line a problem; the code says whether the input or the run was at fault.
fn refusal(status: u16, answer: &Value) -> Failure {
    let error = answer.get("error");
    let details: Vec<Problem> = error
        .and_then(|error| error.get("details"))
        .and_then(|details| serde_json::from_value(details.clone()).ok())
        .unwrap_or_default();
    let message = error.and_then(|error| error.get("message")).and_then(Value::as_str);
    let lines = if details.is_empty() {
        vec![message.map_or_else(|| format!("the server answered {status}"), str::to_owned)]
    } else {
        details.iter().map(ToString::to_string).collect()
    };
    Failure { code: if (400..500).contains(&status) { 2 } else { 1 }, lines }
}
