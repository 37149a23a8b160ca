//! Who asks, as far as the request's head tells: the run and step for the monitor, and the key.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use utoipa::IntoParams;

use super::auth::Key;
use super::error::ApiError;
use super::{AppState, REQUEST_ID};
use crate::monitor::{Origin, Role};

/// Name of the run that unnamed traffic belongs to.
const DEFAULT_RUN: &str = "default";
/// Longest name of a run, in characters: it becomes a metric's label.
const MAX_RUN_NAME: usize = 128;
/// Largest step: what every JSON reader keeps exactly.
pub(super) const MAX_STEP: u64 = (1 << 53) - 1;

/// The head of a scoring request.
#[derive(Debug)]
pub(super) struct Caller {
    headers: HeaderMap,
    run_in_url: Option<String>,
    /// The caller's key, where keys are set.
    pub(super) key: Option<Arc<Key>>,
}

/// Headers that every scoring route reads.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "only described")]
pub(super) struct RunHeaders {
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
}

/// For clients that can be given a URL and no header.
#[derive(Debug, IntoParams, serde::Deserialize)]
#[into_params(parameter_in = Query)]
pub(super) struct RunQuery {
    /// Training run, where `X-Run-Id` names none
    #[param(
        nullable = false,
        min_length = 1,
        max_length = 128,
        pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$"
    )]
    run: Option<String>,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        let query = axum::extract::Query::<RunQuery>::try_from_uri(&parts.uri);
        Ok(Self {
            headers: parts.headers.clone(),
            run_in_url: query.ok().and_then(|query| query.0.run),
            key: parts.extensions.get::<Arc<Key>>().cloned(),
        })
    }
}

/// Checks the name of a run.
pub(super) fn check_run(run: &str) -> Result<(), ApiError> {
    let length = run.chars().count();
    if !(1..=MAX_RUN_NAME).contains(&length) || run.chars().any(char::is_control) {
        let message = format!("1 to {MAX_RUN_NAME} characters, no control characters");
        return Err(ApiError::invalid("/run", message));
    }
    Ok(())
}

impl Caller {
    /// The request's own id, or the one that it was given.
    pub(super) fn request_id(&self) -> &str {
        let value = self.headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }

    /// The run and step, from the body or else from the headers or the URL.
    pub(super) fn origin(
        &self,
        run: Option<&str>,
        step: Option<u64>,
        role: Role,
    ) -> Result<Origin, ApiError> {
        // What cannot be read must not be ignored: the answers would be another run's.
        let header = |name: &str, field: &str| {
            self.headers.get(name).map(|value| value.to_str()).transpose().map_err(|_| {
                let message = format!("the header {name} is not ASCII; use the body's field");
                ApiError::invalid(field, message)
            })
        };
        let in_header = header("X-Run-Id", "/run")?;
        for run in [run, in_header, self.run_in_url.as_deref()].into_iter().flatten() {
            check_run(run)?;
        }
        let run = run.or(in_header).or(self.run_in_url.as_deref()).unwrap_or(DEFAULT_RUN);
        let in_header = header("X-Step", "/step")?
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
        Ok(Origin { run: run.to_owned(), step, role, request: self.request_id().into() })
    }
}
