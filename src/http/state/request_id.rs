//! The id that a request is known by in the logs.

use axum::http::{HeaderMap, HeaderName};

pub(in crate::http) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request with this head.
pub(in crate::http) fn request_id(headers: &HeaderMap) -> String {
    let value = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}
