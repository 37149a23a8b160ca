//! Refusals before the body is read: under overload most requests are refused, and what is spent on
//! them is taken from those that are not.

use std::time::{Duration, Instant};

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use crate::engine::EngineError;
use crate::http::scoring::{DEFAULT_RUN, JsonBody, json_bytes, parse, run_of_head};
use crate::http::state::{ApiError, AppState, NamedInUrl};

/// The route whose body may name a run and a deadline.
const NATIVE: &str = "/reward";

/// The JSON body of a scoring request, read where the engine may have room for it, with the model that it is for.
#[derive(Debug)]
pub(in crate::http) struct AdmittedBody<T>(pub(in crate::http) AppState, pub(in crate::http) T);

impl<T: DeserializeOwned> FromRequest<AppState> for AdmittedBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        check_head(&request, state)?;
        let chosen = request.extensions().get().copied();
        let bytes = json_bytes(request, state).await?;
        let JsonBody(body) = parse(&bytes)?;
        Ok(Self(state.of_body(chosen, &bytes)?, body))
    }
}

/// Whether a request might be admitted that has this head and one input.
fn check_head(request: &Request, state: &AppState) -> Result<(), EngineError> {
    let limits = &state.config.limits;
    let run = run_of_head(request.headers(), request.uri());
    let is_native = request.uri().path() == NATIVE;
    let deadline = if is_native { limits.max_deadline_ms } else { limits.default_deadline_ms };
    let run = run.as_deref().or((!is_native).then_some(DEFAULT_RUN));
    let deadline = Instant::now() + Duration::from_millis(deadline);
    let room = state.engine.check_room(run, 1, deadline);
    if room.is_ok() || !state.has_several() || request.extensions().get::<NamedInUrl>().is_some() {
        return room;
    }
    // The body may name a model that has room.
    let elsewhere = state.each().any(|state| state.engine.check_room(run, 1, deadline).is_ok());
    if elsewhere { Ok(()) } else { room }
}
