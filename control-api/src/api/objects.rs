//! Purpose: one object, or the objects of a kind.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Api;
use super::apply::{OptionsQuery, answer, read_if_match, read_manifests, read_options};
use super::error::ApiError;
use crate::model::{Kind, Object, ObjectKey, PolicySet};
use crate::store::{Change, Write};

type KeyPath = Path<(String, String, String)>;

fn parse_kind(text: &str) -> Result<Kind, ApiError> {
    Kind::parse_loose(text).map_err(ApiError::not_found)
}

fn parse_key(Path((kind, namespace, name)): KeyPath) -> Result<ObjectKey, ApiError> {
    Ok(ObjectKey::new(parse_kind(&kind)?, &namespace, &name))
}

pub(super) async fn list_all(State(api): State<Arc<Api>>, Path(kind): Path<String>) -> Result<Json<Value>, ApiError> {
    let kind = parse_kind(&kind)?;
    Ok(Json(list(&api.store.current(), kind, None)))
}

pub(super) async fn list_namespace(
    State(api): State<Arc<Api>>,
    Path((kind, namespace)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let kind = parse_kind(&kind)?;
    Ok(Json(list(&api.store.current(), kind, Some(&namespace))))
}

fn list(set: &PolicySet, kind: Kind, namespace: Option<&str>) -> Value {
    let items: Vec<Value> = set
        .objects
        .values()
        .filter(|object| object.key.kind == kind)
        .filter(|object| namespace.is_none_or(|wanted| object.key.namespace == wanted))
        .map(|object| object.to_json())
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "List",
        "metadata": { "resourceVersion": set.revision.to_string() },
        "items": items,
    })
}

fn show(object: &Object, status: StatusCode) -> Response {
    let tag = format!("\"{}\"", object.changed);
    (status, [(header::ETAG, tag)], Json(object.to_json())).into_response()
}

pub(super) async fn read(State(api): State<Arc<Api>>, path: KeyPath) -> Result<Response, ApiError> {
    let key = parse_key(path)?;
    match api.store.current().objects.get(&key) {
        Some(object) => Ok(show(object, StatusCode::OK)),
        None => Err(ApiError::not_found(format!("{key} does not exist"))),
    }
}

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    path: KeyPath,
    query: OptionsQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let key = parse_key(path)?;
    let mut changes = read_options(query)?;
    let is_dry_run = changes.is_dry_run;
    let mut manifests = read_manifests(&headers, body).await?;
    let Some(mut manifest) = manifests.pop().filter(|_| manifests.is_empty()) else {
        return Err(ApiError::bad_request("PUT takes one object; use POST /v1/apply for several"));
    };
    if manifest.key != key {
        return Err(ApiError::bad_request(format!("the body is {}, the path says {key}", manifest.key)));
    }
    let mut expected = read_if_match(&headers)?;
    if headers.get(header::IF_NONE_MATCH).is_some_and(|value| value == "*") {
        expected = Some(0);
    }
    let insists = expected.is_some();
    manifest.expected = expected.or(manifest.expected);
    changes.writes.push(Write::Put(Box::new(manifest)));
    let committed = api.commit(changes).await;
    let outcome = committed.map_err(|error| if insists { error.as_precondition() } else { error })?;
    if is_dry_run {
        return Ok(Json(answer(&outcome, true)).into_response());
    }
    let is_new = outcome.changes.iter().any(|(_, change)| *change == Change::Created);
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    match api.store.current().objects.get(&key) {
        Some(object) => Ok(show(object, status)),
        None => Ok(Json(answer(&outcome, false)).into_response()),
    }
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    path: KeyPath,
    query: OptionsQuery,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let key = parse_key(path)?;
    let mut changes = read_options(query)?;
    let is_dry_run = changes.is_dry_run;
    let expected = read_if_match(&headers)?;
    changes.writes.push(Write::Delete { key, expected });
    let outcome = api.commit(changes).await.map_err(ApiError::as_precondition)?;
    Ok(Json(answer(&outcome, is_dry_run)))
}
