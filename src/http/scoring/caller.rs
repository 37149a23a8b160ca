//! Who asks, as far as the request's head tells: the run and step for the monitor, and the key.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri};
use utoipa::IntoParams;

use super::timing::Timing;
use crate::http::state::{ApiError, AppState, Key, REQUEST_ID};
use crate::monitor::{Role, SampleOrigin};

/// Name of the run that unnamed traffic belongs to.
pub(in crate::http) const DEFAULT_RUN: &str = "default";
const RUN_HEADER: &str = "x-run-id";
const STEP_HEADER: &str = "x-step";
/// Longest name of a run, in characters: it becomes a metric's label.
const MAX_RUN_NAME: usize = 128;
/// Largest step: what every JSON reader keeps exactly.
pub(in crate::http) const MAX_STEP: u64 = (1 << 53) - 1;

/// The head of a scoring request.
#[derive(Debug)]
pub(in crate::http) struct Caller {
    request_id: Option<HeaderValue>,
    run: Option<HeaderValue>,
    step: Option<HeaderValue>,
    run_in_url: Option<String>,
    /// The caller's key, where keys are set.
    pub(in crate::http) key: Option<Arc<Key>>,
    /// Where it asks for `Server-Timing`.
    pub(in crate::http) timing: Option<Timing>,
}

/// Headers that every scoring route reads.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "only described")]
pub(in crate::http) struct RunHeaders {
    /// Training run that the monitor counts the answers to
    #[param(
        rename = "X-Run-Id",
        nullable = false,
        min_length = 1,
        max_length = 128,
        pattern = "^[!-~]([ -~]*[!-~])?$"
    )]
    run: Option<String>,
    /// Training step
    #[param(rename = "X-Step", nullable = false, minimum = 0, maximum = 9007199254740991_u64)]
    step: Option<u64>,
    /// Whether the answer's header `Server-Timing` says where the time went; default false
    #[param(rename = "X-Timing", nullable = false)]
    timing: Option<String>,
}

/// For clients that can be given a URL and no header.
#[derive(Debug, IntoParams, serde::Deserialize)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct RunQuery {
    /// Training run, where `X-Run-Id` names none
    #[param(
        nullable = false,
        min_length = 1,
        max_length = 128,
        pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$"
    )]
    run: Option<String>,
    /// Which of several models; else the body's `model`, else the first
    #[param(nullable = false)]
    #[allow(dead_code, reason = "only described: it chooses before this is read")]
    model: Option<String>,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        let header = |name: &str| parts.headers.get(name).cloned();
        Ok(Self {
            request_id: header(REQUEST_ID.as_str()),
            run: header(RUN_HEADER),
            step: header(STEP_HEADER),
            run_in_url: run_in_url(&parts.uri),
            key: parts.extensions.get::<Arc<Key>>().cloned(),
            timing: parts.extensions.get::<Timing>().cloned(),
        })
    }
}

fn run_in_url(uri: &Uri) -> Option<String> {
    uri.query()?;
    let query = axum::extract::Query::<RunQuery>::try_from_uri(uri);
    query.ok().and_then(|query| query.0.run)
}

/// The run that a request's head names.
pub(in crate::http) fn run_of_head<'a>(headers: &'a HeaderMap, uri: &Uri) -> Option<Cow<'a, str>> {
    let in_header = headers.get(RUN_HEADER).and_then(|value| value.to_str().ok());
    in_header.map(Cow::Borrowed).or_else(|| run_in_url(uri).map(Cow::Owned))
}

/// Checks the name of a run.
pub(in crate::http) fn check_run(run: &str) -> Result<(), ApiError> {
    let length = run.chars().count();
    if !(1..=MAX_RUN_NAME).contains(&length) || run.chars().any(char::is_control) {
        let message = format!("1 to {MAX_RUN_NAME} characters, no control characters");
        return Err(ApiError::invalid("/run", message));
    }
    Ok(())
}

impl Caller {
    /// The request's own id, or the one that it was given.
    pub(in crate::http) fn request_id(&self) -> &str {
        let value = self.request_id.as_ref().and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }

    /// The run and step, from the body or else from the headers or the URL.
    pub(in crate::http) fn origin(
        &self,
        run: Option<&str>,
        step: Option<u64>,
        role: Role,
    ) -> Result<SampleOrigin, ApiError> {
        let in_header = text(self.run.as_ref(), "X-Run-Id", "/run")?;
        for run in [run, in_header, self.run_in_url.as_deref()].into_iter().flatten() {
            check_run(run)?;
        }
        let run = run.or(in_header).or(self.run_in_url.as_deref()).unwrap_or(DEFAULT_RUN);
        let in_header = text(self.step.as_ref(), "X-Step", "/step")?
            .map(|text| {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                let number = text.parse().ok().filter(|step| digits && *step <= MAX_STEP);
                number.ok_or_else(|| {
                    let message = "the header X-Step must be a whole number from 0 to 2^53 - 1";
                    ApiError::invalid("/step", message)
                })
            })
            .transpose()?;
        let step = step.or(in_header);
        if step.is_some_and(|step| step > MAX_STEP) {
            return Err(ApiError::invalid("/step", format!("must be from 0 to {MAX_STEP}")));
        }
        Ok(SampleOrigin { run: run.to_owned(), step, role, request: self.request_id().into() })
    }
}

/// A header's text. What cannot be read must not be ignored: the answers would be another run's.
fn text<'a>(
    value: Option<&'a HeaderValue>,
    name: &str,
    field: &str,
) -> Result<Option<&'a str>, ApiError> {
    value.map(HeaderValue::to_str).transpose().map_err(|_| {
        let message = format!("the header {name} is not ASCII; use the body's field");
        ApiError::invalid(field, message)
    })
}
