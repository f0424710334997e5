//! Purpose: every refusal of the API, in one form.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::model::Problem;
use crate::store::StoreError;

/// A refused request.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Vec<Problem>,
    more: Option<Value>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: Vec::new(), more: None }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 405.
    pub fn wrong_method(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 422 with every problem found.
    #[must_use]
    pub fn refused(details: Vec<Problem>) -> Self {
        let message = match details.as_slice() {
            [only] => only.to_string(),
            several => format!("{} problems; nothing was applied", several.len()),
        };
        Self { details, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", message) }
    }

    /// 504.
    pub fn timed_out(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", message)
    }

    /// Adds a field next to `error`.
    #[must_use]
    pub fn with(mut self, more: Value) -> Self {
        self.more = Some(more);
        self
    }

    /// The caller sent a precondition header, so a mismatch is 412.
    #[must_use]
    pub fn as_precondition(mut self) -> Self {
        if self.code == "outdated" {
            self.status = StatusCode::PRECONDITION_FAILED;
        }
        self
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Contradiction(problems) => Self::refused(problems),
            StoreError::Missing(_) => Self::not_found(message),
            StoreError::Outdated { .. } | StoreError::RevisionMoved { .. } => {
                let remedy = format!("{message}; read it again, then write");
                Self::new(StatusCode::CONFLICT, "outdated", remedy)
            }
            StoreError::Referenced { by, .. } => {
                let names: Vec<String> = by.iter().map(ToString::to_string).collect();
                let remedy = format!("{message}; change those first, or force it (--force, ?force=true)");
                Self::conflict(remedy).with(json!({ "referrers": names }))
            }
            StoreError::Full(_) => {
                let remedy = format!("{message}; nothing was changed; free some space and try again");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "store_full", remedy)
            }
            StoreError::Forbidden(_) => {
                let remedy = format!("{message}; give the control plane's ClusterRole the rules of the chart");
                Self::new(StatusCode::FORBIDDEN, "forbidden", remedy)
            }
            StoreError::Partial { .. } => {
                tracing::error!(reason = message, "an apply ended in the middle");
                let remedy = format!("{message}; apply all of it again when the reason is mended");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "partly_written", remedy)
            }
            StoreError::Unreachable(_) => {
                let remedy = format!("{message}; nothing was changed; try again");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unreachable", remedy)
            }
            StoreError::Locked(_) | StoreError::Failed(_) | StoreError::Unreadable { .. } => {
                tracing::error!(reason = message, "the store failed");
                let remedy = format!("{message}; nothing was changed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", remedy)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": {
            "status": self.status.as_u16(),
            "code": self.code,
            "message": self.message,
            "details": self.details,
        }});
        if let (Some(Value::Object(more)), Some(error)) =
            (self.more, body.get_mut("error").and_then(Value::as_object_mut))
        {
            error.extend(more);
        }
        (self.status, Json(body)).into_response()
    }
}
