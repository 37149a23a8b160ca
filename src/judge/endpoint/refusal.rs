//! A server's answer that is no success.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::http::{HeaderMap, Response};

use crate::judge::session::AskError;
use crate::judge::session::shown;
use crate::judge::session::{Unjudged, UnjudgedReason};

/// What a status means: 429 and 5xx pass, a question that is too long or filtered will not be answered, and anything else
/// would be said to every question.
pub(super) fn of(url: &str, head: &Response<()>, body: &str) -> AskError {
    let status = head.status();
    let (code, said) = error(body);
    let message = format!("{url} answered {status}: {said}");
    let later = |reason| AskError::Later {
        unjudged: Unjudged::new(reason, message.clone()),
        after: retry_after(head.headers(), SystemTime::now()),
    };
    match (status.as_u16(), code.as_deref()) {
        (429, _) => later(UnjudgedReason::RateLimited),
        (408, _) => later(UnjudgedReason::TimeOut),
        (500.., _) => later(UnjudgedReason::ServerError),
        (400, Some("context_length_exceeded")) => {
            AskError::Never(Unjudged::new(UnjudgedReason::TooLong, message))
        }
        (400, Some("content_filter")) => {
            AskError::Never(Unjudged::new(UnjudgedReason::ContentFilter, message))
        }
        _ => AskError::Fatal(message),
    }
}

/// `code` and `message` of an OpenAI error, or the beginning of what was said instead.
fn error(body: &str) -> (Option<String>, String) {
    let body_json: Value = serde_json::from_str(body).unwrap_or_default();
    let text = |name: &str| body_json["error"][name].as_str().map(str::to_owned);
    (text("code"), text("message").unwrap_or_else(|| shown(body)))
}

/// The time that `Retry-After` gives, as seconds or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    // A date that has passed asks for no time.
    Some(at.duration_since(now).unwrap_or_default())
}
