//! Readiness, and the few things that can be changed.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::{Admin, render};

pub(super) async fn ready(State(admin): State<Admin>) -> Response {
    let readiness = (admin.ready)();
    if readiness.is_ready() {
        return render::text(StatusCode::OK, "ready\n".into());
    }
    let reasons = readiness.reasons();
    let reasons: String = reasons.iter().map(|reason| format!("- {}\n", reason.escape_debug())).collect();
    render::text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{reasons}"))
}

pub(super) async fn live() -> Response {
    render::text(StatusCode::OK, "live\n".into())
}

pub(super) async fn drain(State(admin): State<Admin>) -> Response {
    admin.control.drain();
    done("draining: no new work is taken, what runs may finish")
}

pub(super) async fn quit(State(admin): State<Admin>) -> Response {
    admin.control.quit();
    done("ending")
}

pub(super) async fn fail(State(admin): State<Admin>) -> Response {
    admin.control.set_healthy(false);
    done("/ready now answers 503")
}

pub(super) async fn ok(State(admin): State<Admin>) -> Response {
    admin.control.set_healthy(true);
    done("/ready now answers for itself")
}

pub(super) async fn log_level(State(admin): State<Admin>) -> Response {
    render::json(StatusCode::OK, &json!({ "level": admin.control.log_level() }))
}

#[derive(Deserialize)]
pub(super) struct LevelQuery {
    level: String,
}

pub(super) async fn set_log_level(
    State(admin): State<Admin>,
    query: Result<Query<LevelQuery>, QueryRejection>,
) -> Response {
    let level = match query {
        Ok(Query(query)) => query.level,
        Err(rejection) => return render::bad_query(&rejection),
    };
    match admin.control.set_log_level(&level) {
        Ok(()) => render::json(StatusCode::OK, &json!({ "level": admin.control.log_level() })),
        Err(error) => {
            let error = format!("level {level:?}: {error}; use error, warn, info, debug or trace");
            render::json(StatusCode::BAD_REQUEST, &json!({ "error": error }))
        }
    }
}

fn done(message: &str) -> Response {
    render::json(StatusCode::OK, &json!({ "message": message }))
}
