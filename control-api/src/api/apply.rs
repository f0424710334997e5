//! Purpose: many objects in one request, all or nothing.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{Api, BODY_BYTES_MAX};
use crate::model::document::Syntax;
use crate::model::{Manifest, parse_manifests};
use crate::store::{Changes, Outcome, Write};

/// Options of a changing request.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Options {
    dry_run: bool,
    force: bool,
}

pub(super) type OptionsQuery = Result<Query<Options>, QueryRejection>;

/// Reads the options; an unknown one is refused.
pub(super) fn read_options(query: OptionsQuery) -> Result<Changes, ApiError> {
    let Query(options) = query.map_err(|rejection| {
        ApiError::bad_request(format!(
            "{}; known options are dryRun=true|false and force=true|false",
            rejection.body_text()
        ))
    })?;
    Ok(Changes { is_dry_run: options.dry_run, is_forced: options.force, ..Changes::default() })
}

/// Reads a body up to the limit, as text, with its syntax.
pub(super) async fn read_body(headers: &HeaderMap, body: Body) -> Result<(String, Syntax), ApiError> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        ApiError::too_large(format!("the body is above {BODY_BYTES_MAX} bytes or was cut short; apply it in parts"))
    })?;
    let text = String::from_utf8(bytes.into())
        .map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: {error}")))?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| value.to_ascii_lowercase().contains("json"));
    Ok((text, if is_json { Syntax::Json } else { Syntax::Yaml }))
}

/// Reads `If-Match: "12"`; `*` and absence insist on nothing.
pub(super) fn read_if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    if value.trim() == "*" {
        return Ok(None);
    }
    let number = value.trim().trim_start_matches("W/").trim_matches('"').parse();
    number
        .map(Some)
        .map_err(|_| ApiError::bad_request(format!("If-Match is {value:?}; it must be a revision such as \"12\"")))
}

/// Reads a body and parses it, beside the runtime's thread.
pub(super) async fn read_manifests(headers: &HeaderMap, body: Body) -> Result<Vec<Manifest>, ApiError> {
    let (text, syntax) = read_body(headers, body).await?;
    let parsed = tokio::task::spawn_blocking(move || parse_manifests(&text, syntax)).await;
    match parsed {
        Ok(manifests) => manifests.map_err(ApiError::refused),
        Err(stopped) => Err(ApiError::bad_request(stopped.to_string())),
    }
}

pub(super) async fn apply(
    State(api): State<Arc<Api>>,
    query: OptionsQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let mut changes = read_options(query)?;
    changes.expected_revision = read_if_match(&headers)?;
    let manifests = read_manifests(&headers, body).await?;
    changes.writes = manifests.into_iter().map(|one| Write::Put(Box::new(one))).collect();
    commit(&api, changes).await
}

pub(super) async fn delete_all(
    State(api): State<Arc<Api>>,
    query: OptionsQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let mut changes = read_options(query)?;
    changes.expected_revision = read_if_match(&headers)?;
    let manifests = read_manifests(&headers, body).await?;
    let delete = |one: Manifest| Write::Delete { key: one.key, expected: one.expected };
    changes.writes = manifests.into_iter().map(delete).collect();
    commit(&api, changes).await
}

async fn commit(api: &Arc<Api>, changes: Changes) -> Result<Json<Value>, ApiError> {
    let (is_dry_run, insists) = (changes.is_dry_run, changes.expected_revision.is_some());
    let committed = api.commit(changes).await;
    let outcome = committed.map_err(|error| if insists { error.as_precondition() } else { error })?;
    Ok(Json(answer(&outcome, is_dry_run)))
}

/// What an apply or delete answers.
pub(super) fn answer(outcome: &Outcome, is_dry_run: bool) -> Value {
    let objects: Vec<Value> = outcome
        .changes
        .iter()
        .map(|(key, change)| {
            json!({
                "kind": key.kind.as_str(),
                "namespace": key.namespace,
                "name": key.name,
                "change": change,
            })
        })
        .collect();
    json!({ "revision": outcome.revision, "dryRun": is_dry_run, "objects": objects })
}
