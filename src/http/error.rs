//! Answers to requests that cannot be served.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::engine::EngineError;
use crate::monitor::MonitorError;

/// An error answer: `{"error": {"code", "message", "request_id", "pointer"?}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// JSON pointer (RFC 6901) of the field at fault.
    pointer: Option<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), pointer: None }
    }

    /// 400: the field at `pointer` is not as the API says.
    pub(super) fn invalid(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            pointer: Some(pointer.into()),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
        }
    }

    /// 500: what should not happen.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let (status, code) = match error {
            EngineError::QueueFull { .. } | EngineError::Overloaded { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "queue_full")
            }
            EngineError::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
            EngineError::DeadlineExceeded => (StatusCode::REQUEST_TIMEOUT, "deadline_exceeded"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<MonitorError> for ApiError {
    fn from(error: MonitorError) -> Self {
        let (status, code) = match error {
            MonitorError::UnknownRun(_) => (StatusCode::NOT_FOUND, "unknown_run"),
            MonitorError::EmptyWindow(_) => (StatusCode::CONFLICT, "empty_window"),
            MonitorError::Setting { .. } | MonitorError::Thread(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        Self::new(status, code, error.to_string())
    }
}

impl ApiError {
    /// The code, for the metrics.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The answer, with the id by which the request is found in the logs.
    pub(super) fn answer(&self, request_id: &str) -> Response {
        let mut error =
            json!({"code": self.code, "message": self.message, "request_id": request_id});
        if let Some(pointer) = &self.pointer {
            error["pointer"] = json!(pointer);
        }
        let mut response = (self.status, Json(json!({ "error": error }))).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Only the status: the middleware around all handlers, which knows the request's id, writes the
/// answer from the error that it finds in the extensions.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
