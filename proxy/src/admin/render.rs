//! Answers as JSON or as text, and the query parameter that chooses.

use std::fmt::Write as _;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

/// `?format=`, for the paths that default to JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// For programs.
    #[default]
    Json,
    /// For people at a terminal.
    Text,
}

#[derive(Deserialize)]
struct FormatQuery {
    #[serde(default)]
    format: Format,
}

impl<S: Send + Sync> FromRequestParts<S> for Format {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Query::<FormatQuery>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(query.format),
            Err(rejection) => Err(bad_query(&rejection)),
        }
    }
}

/// 400 with what is wrong with the query.
pub(super) fn bad_query(rejection: &QueryRejection) -> Response {
    json(StatusCode::BAD_REQUEST, &json!({ "error": rejection.body_text() }))
}

/// `value` as the caller asked for it.
pub(super) fn reply(format: Format, value: &Value) -> Response {
    match format {
        Format::Json => json(StatusCode::OK, value),
        Format::Text => text(StatusCode::OK, to_text(value)),
    }
}

/// JSON, indented for reading.
pub(super) fn json(status: StatusCode, value: &Value) -> Response {
    let body = format!("{value:#}\n");
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Plain text.
pub(super) fn text(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

/// An indented outline: `key: value` lines, `- ` before items of a list. Control characters are escaped.
fn to_text(value: &Value) -> String {
    let mut out = String::new();
    write_lines(&mut out, value, 0);
    out
}

fn write_lines(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                indent(out, depth);
                write_escaped(out, key);
                out.push(':');
                write_rest(out, field, depth);
            }
        }
        Value::Array(items) => {
            for item in items {
                indent(out, depth);
                out.push('-');
                write_rest(out, item, depth);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            indent(out, depth);
            write_scalar(out, value);
            out.push('\n');
        }
    }
}

/// What follows a key or a dash: on the same line when it is short.
fn write_rest(out: &mut String, value: &Value, depth: usize) {
    let is_empty = match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push(' ');
            write_scalar(out, value);
            out.push('\n');
            return;
        }
    };
    if is_empty {
        out.push_str(" none\n");
    } else {
        out.push('\n');
        write_lines(out, value, depth + 1);
    }
}

fn write_scalar(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("none"),
        Value::String(text) => write_escaped(out, text),
        other => write!(out, "{other}").expect("writing to a String cannot fail"),
    }
}

fn write_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_an_outline_without_control_characters() {
        let value = json!({ "a": [{ "b": "x\u{1b}[31m\ny", "c": null }, []], "d": {}, "e": [1, true] });
        assert_eq!(
            to_text(&value),
            "a:\n  -\n    b: x\\u{1b}[31m\\ny\n    c: none\n  - none\nd: none\ne:\n  - 1\n  - true\n"
        );
    }
}
