//! JSON bodies, read with errors that name the field.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::http::state::{ApiError, AppState};
use crate::pointer::pointer;

/// A body is read up to this many times the limit before the connection is given up.
const DISCARD_FACTOR: usize = 4;

/// Characters that are kept of either end of a long message about a field.
const KEPT: usize = 200;

/// A JSON body of type `T`.
#[derive(Debug)]
pub(in crate::http) struct JsonBody<T>(pub(in crate::http) T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        parse(&json_bytes(request, state).await?)
    }
}

/// The bytes of a body that says it is JSON.
pub(in crate::http) async fn json_bytes(
    request: Request,
    state: &AppState,
) -> Result<Vec<u8>, ApiError> {
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| {
        let media = value.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case("application/json") || media.ends_with("+json")
    });
    if !is_json {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send the body as `Content-Type: application/json`",
        ));
    }
    let limits = &state.config.limits;
    // Time for the whole body: one that trickles must not hold a connection for ever.
    let time = Duration::from_millis(limits.body_timeout_ms);
    tokio::time::timeout(time, read(request.into_body(), limits.max_body_bytes)).await.map_err(
        |_| {
            let message = format!("the body did not arrive within {} ms", time.as_millis());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "read_timeout", message)
        },
    )?
}

/// A JSON value as a `T`; for routes that first look what they were sent.
pub(in crate::http) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        ApiError::invalid(pointer(error.path()), shortened(&error.inner().to_string()))
    })
}

/// Reads a body of at most `limit` bytes. A longer one is read on for a while and thrown away: a
/// client that is still sending would not see an answer.
async fn read(mut body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let message = format!("the body could not be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", message)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length <= limit {
            bytes.extend_from_slice(&data);
        } else if length > DISCARD_FACTOR * limit {
            break;
        }
    }
    if length > limit {
        let message = format!("the body exceeds {limit} bytes; send fewer inputs a request");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    Ok(bytes)
}

pub(in crate::http) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<JsonBody<T>, ApiError> {
    let not_json = |error: &serde_json::Error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_json",
            format!("the body is not valid JSON: {error}"),
        )
    };
    // A derived `Deserialize` would take a list of the fields' values as well.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| not_json(&error))?;
        return Err(ApiError::invalid("", "invalid type: sequence, expected a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        if error.inner().is_data() {
            ApiError::invalid(pointer(error.path()), shortened(&error.inner().to_string()))
        } else {
            not_json(error.inner())
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(JsonBody(value))
}

/// The message, without the middle of one that quotes a long text of the body.
fn shortened(message: &str) -> String {
    if message.chars().count() <= 2 * KEPT {
        return message.to_owned();
    }
    let start: String = message.chars().take(KEPT).collect();
    let end: Vec<char> = message.chars().rev().take(KEPT).collect();
    format!("{start}...{}", end.into_iter().rev().collect::<String>())
}
