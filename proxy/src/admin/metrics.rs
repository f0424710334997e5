//! `/stats` and `/stats/prometheus`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::json;

use super::{Admin, AdminSources, render};
use crate::observe::{self, Observation, Process, Samples};

/// Bytes a compiled filter may take.
const MAX_FILTER_BYTES: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StatsFormat {
    Json,
    Prometheus,
    #[default]
    Text,
}

#[derive(Debug, Deserialize)]
pub(super) struct StatsQuery {
    #[serde(default)]
    format: StatsFormat,
    filter: Option<String>,
}

pub(super) async fn stats(State(admin): State<Admin>, query: Result<Query<StatsQuery>, QueryRejection>) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(rejection) => return render::bad_query(&rejection),
    };
    let filter = match query.filter.as_deref().map(parse_filter).transpose() {
        Ok(filter) => filter,
        Err(error) => return render::json(StatusCode::BAD_REQUEST, &json!({ "error": error })),
    };
    let samples = take(&admin);
    let keep = |line: &str| filter.as_ref().is_none_or(|filter| filter.is_match(line));
    match query.format {
        StatsFormat::Json => render::json(StatusCode::OK, &observe::to_json(&samples, keep)),
        StatsFormat::Prometheus => exposition(&samples),
        StatsFormat::Text => render::text(StatusCode::OK, observe::write_text(&samples, keep)),
    }
}

pub(super) async fn prometheus(State(admin): State<Admin>) -> Response {
    exposition(&take(&admin))
}

fn parse_filter(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_FILTER_BYTES)
        .build()
        .map_err(|error| format!("filter {pattern:?} is no regular expression: {error}"))
}

pub(super) fn exposition(samples: &Samples) -> Response {
    ([(header::CONTENT_TYPE, observe::CONTENT_TYPE)], observe::write_prometheus(samples)).into_response()
}

pub(super) fn take(sources: &AdminSources) -> Samples {
    observe::collect(&Observation {
        registry: &sources.registry,
        snapshot: &sources.publisher.current(),
        io: &sources.io,
        workers: &(sources.workers)(),
        xds: &(sources.xds)(),
        limits: &(sources.limits)(),
        process: &Process::read(),
        is_ready: (sources.ready)().is_ready(),
        capture: (sources.capture)(),
    })
}
