//! Answers to requests that cannot be served.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::engine::EngineError;
use crate::monitor::{MonitorError, OverrideError};

/// Least and most seconds of `Retry-After` at an overload.
const RETRY_AFTER: (u64, u64) = (1, 60);

/// How a client expects an error to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum ErrorShape {
    /// `{"error": {"code", "message", "request_id", "pointer"?}}`
    Native,
    /// OpenAI's and vLLM's: the same with `type` and `param`.
    OpenAi,
    /// Text Embeddings Inference's: `{"error": message, "error_type"}`.
    Tei,
}

/// A request that is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// JSON pointer (RFC 6901) of the field at fault.
    pointer: Option<String>,
    /// Seconds after which it is worth trying again.
    retry_after: Option<u64>,
    shape: ErrorShape,
    /// Whether a browser is to ask its user for the key.
    password: bool,
}

/// The body of an error answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ErrorAnswer {
    error: ErrorBody,
}

/// What was wrong.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorBody {
    code: &'static str,
    message: String,
    /// The request's id, by which the logs know it.
    request_id: String,
    /// JSON pointer of the field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pointer: Option<String>,
    /// Only on OpenAI's and vLLM's routes.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    kind: Option<&'static str>,
    /// Only on OpenAI's and vLLM's routes: the field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    param: Option<String>,
}

/// An error answer of Text Embeddings Inference's routes.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TeiError {
    /// The message.
    error: String,
    error_type: &'static str,
    code: &'static str,
    request_id: String,
}

/// An error of a route that two protocols share, as the request's protocol writes it.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only described")]
pub(in crate::http) enum AnyError {
    OpenAi(ErrorAnswer),
    Tei(TeiError),
}

/// What scoring routes may answer besides 200, with their bodies.
macro_rules! scoring_errors {
    ($(#[$document:meta])* $name:ident, $body:ident) => {
        $(#[$document])*
        #[derive(IntoResponses)]
        #[allow(dead_code, reason = "only described")]
        pub(in crate::http) enum $name {
            /// `invalid_json`, or `invalid_request` with the pointer of the field at fault
            #[response(status = 400)]
            Invalid($body),
            /// `unauthorized`: keys are set, and the request has none of them
            #[response(status = 401)]
            Unauthorized(ErrorAnswer),
            /// `unknown_model`: no model is called so; on `/runs` `unknown_run` and `no_latents` too
            #[response(status = 404)]
            Unknown($body),
            /// `deadline_exceeded` (native routes), or `read_timeout`: the body did not arrive in time
            #[response(status = 408)]
            TooLate($body),
            /// `body_too_large`, `too_many_inputs`
            #[response(status = 413)]
            TooLarge($body),
            /// `unsupported_media_type`
            #[response(status = 415)]
            MediaType($body),
            /// `unprocessable`: no input of the request can be scored
            #[response(status = 422)]
            Unprocessable($body),
            /// `rate_limited`: the key's own quota (native routes)
            #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds")))]
            RateLimited($body),
            /// `queue_full`, `draining`; on foreign routes `deadline_exceeded` and `rate_limited` too
            #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds")))]
            Unavailable($body),
        }
    };
}

scoring_errors!(
    /// In the native shape.
    ScoringErrors,
    ErrorAnswer
);
scoring_errors!(
    /// In the shape of Text Embeddings Inference.
    TeiErrors,
    TeiError
);
scoring_errors!(
    /// In the shape of the request's protocol.
    AnyErrors,
    AnyError
);

/// What routes of the monitor may answer besides 200.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
pub(in crate::http) enum RunErrors {
    /// `invalid_request`
    #[response(status = 400)]
    Invalid(ErrorAnswer),
    /// `unauthorized`: keys are set, and the request has none of them
    #[response(status = 401)]
    Unauthorized(ErrorAnswer),
    /// `unknown_model`, `unknown_run`, or `no_latents`
    #[response(status = 404)]
    Unknown(ErrorAnswer),
}

/// What a route may answer where keys are set.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only described")]
pub(in crate::http) enum KeyError {
    /// `unauthorized`: keys are set, and the request has none of them
    #[response(status = 401)]
    Unauthorized(ErrorAnswer),
}

impl ApiError {
    pub(in crate::http) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let overloaded = status == StatusCode::SERVICE_UNAVAILABLE;
        Self {
            status,
            code,
            message: message.into(),
            pointer: None,
            retry_after: overloaded.then_some(1),
            shape: ErrorShape::Native,
            password: false,
        }
    }

    /// 400: the field at `pointer` is not as the API says.
    pub(in crate::http) fn invalid(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            pointer: Some(pointer.into()),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
        }
    }

    /// The same; where `browser`, a browser asks its user for the key.
    pub(in crate::http) fn asking_for_password(self, browser: bool) -> Self {
        Self { password: browser, ..self }
    }

    /// 429: the caller has used up its own quota.
    pub(in crate::http) fn rate_limited(message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
        }
    }

    /// The same as 422: the field is of the right type, and cannot be used.
    pub(in crate::http) fn out_of_place(self) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, code: "unprocessable", ..self }
    }

    /// 422: no input of the request can be scored.
    pub(in crate::http) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unprocessable", message)
    }

    /// 500: what should not happen.
    pub(in crate::http) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// As clients of a foreign protocol take it: some of them give up training at any 4xx, so what
    /// would be different a moment later becomes 503.
    pub(in crate::http) fn foreign(mut self, shape: ErrorShape) -> Self {
        if matches!(self.code, "deadline_exceeded" | "rate_limited") {
            self.status = StatusCode::SERVICE_UNAVAILABLE;
            self.retry_after.get_or_insert(1);
        }
        if self.shape == ErrorShape::Native {
            self.shape = shape;
        }
        self
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
        let plain = Self::new(status, code, error.to_string());
        let (least, most) = RETRY_AFTER;
        let seconds = |wait: Duration| (wait.as_secs_f64().ceil() as u64).clamp(least, most);
        Self { retry_after: error.retry_after().map(seconds).or(plain.retry_after), ..plain }
    }
}

impl From<MonitorError> for ApiError {
    fn from(error: MonitorError) -> Self {
        let (status, code) = match error {
            MonitorError::UnknownRun(_) => (StatusCode::NOT_FOUND, "unknown_run"),
            MonitorError::EmptyWindow(_) => (StatusCode::CONFLICT, "empty_window"),
            MonitorError::Override(error) => {
                let OverrideError { pointer, message, is_conflict } = error;
                let invalid = Self::invalid(pointer, message);
                return if is_conflict { invalid.out_of_place() } else { invalid };
            }
            MonitorError::EmptyBaseline => (StatusCode::UNPROCESSABLE_ENTITY, "unprocessable"),
            MonitorError::Setting { .. } | MonitorError::Thread(_) | MonitorError::Journal(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        Self::new(status, code, error.to_string())
    }
}

impl ApiError {
    /// The code, for the metrics.
    pub(in crate::http) fn code(&self) -> &'static str {
        self.code
    }

    /// The answer, with the id by which the request is found in the logs.
    pub(in crate::http) fn answer(&self, request_id: &str) -> Response {
        let (message, request_id) = (self.message.clone(), request_id.to_owned());
        let mut response = if self.shape == ErrorShape::Tei {
            let error_type =
                if self.status.is_client_error() { "Validation" } else { "Overloaded" };
            let body = TeiError { error: message, error_type, code: self.code, request_id };
            (self.status, Json(body)).into_response()
        } else {
            let open_ai = self.shape == ErrorShape::OpenAi;
            let kind = if self.status.is_client_error() {
                "invalid_request_error"
            } else {
                "service_unavailable_error"
            };
            let error = ErrorBody {
                code: self.code,
                message,
                request_id,
                pointer: self.pointer.clone(),
                kind: open_ai.then_some(kind),
                param: if open_ai { self.pointer.clone() } else { None },
            };
            (self.status, Json(ErrorAnswer { error })).into_response()
        };
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            if self.password {
                let basic = HeaderValue::from_static(
                    "Basic realm=\"a key of inform-server as the password\"",
                );
                headers.append(header::WWW_AUTHENTICATE, basic);
            }
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
