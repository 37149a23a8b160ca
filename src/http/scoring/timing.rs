//! `Server-Timing` (W3C) for those who ask for it: where a scoring request's time went, on every protocol.

use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::outcome::Outcome;
use crate::engine::JobScore;

/// Asks for it, as `X-Timing: true`.
const ASKED: HeaderName = HeaderName::from_static("x-timing");
const ANSWERED: HeaderName = HeaderName::from_static("server-timing");

/// Inputs of a request that are named one by one: proxies bound the length of headers.
const NAMED: usize = 32;

/// Where the scoring call leaves the times, for the middleware that writes headers.
#[derive(Debug, Clone, Default)]
pub(in crate::http) struct Timing(Arc<OnceLock<String>>);

impl Timing {
    /// For requests that ask for it.
    pub(in crate::http) fn asked(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(ASKED)?.to_str().ok()?;
        value.eq_ignore_ascii_case("true").then(Self::default)
    }

    /// Notes the times of a request's inputs: the longest, and, where there are several, each.
    pub(in crate::http) fn note(&self, outcomes: &[Outcome]) {
        let scored = || outcomes.iter().map(|outcome| outcome.scored.as_ref().ok());
        let longest = |time: fn(&JobScore) -> Duration| scored().flatten().map(time).max();
        let mut text = String::new();
        let mut add = |name: &str, index: Option<usize>, time: Duration| {
            let comma = if text.is_empty() { "" } else { ", " };
            let index = index.map(|index| format!("-{index}")).unwrap_or_default();
            // Writing into a string cannot fail.
            let _ = write!(text, "{comma}{name}{index};dur={:.3}", time.as_secs_f64() * 1e3);
        };
        add("queue", None, longest(|scored| scored.queue).unwrap_or_default());
        add("device", None, longest(|scored| scored.device).unwrap_or_default());
        if outcomes.len() > 1 {
            for (index, scored) in scored().enumerate().take(NAMED) {
                let Some(scored) = scored else { continue };
                add("queue", Some(index), scored.queue);
                add("device", Some(index), scored.device);
            }
        }
        // A request is scored once.
        let _ = self.0.set(text);
    }

    /// Writes what was noted.
    pub(in crate::http) fn write(&self, headers: &mut HeaderMap) {
        if let Some(value) = self.0.get().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(ANSWERED, value);
        }
    }
}
