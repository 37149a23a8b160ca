//! `/runs`: what the monitor knows.

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::middleware::ModelQuery;
use crate::http::scoring::{JsonBody, MAX_STEP, check_run};
use crate::http::state::{
    ApiError, AppState, ErrorAnswer, RunErrors, ScoringErrors, off_the_event_loop,
};
use crate::monitor::{Evaluation, Monitor, RunConfig, RunView};

/// Every run.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RunList {
    runs: Vec<RunView>,
}

/// The evaluations of a run.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct EvaluationList {
    evaluations: Vec<Evaluation>,
}

/// The part of the evaluations that is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct EvaluationQuery {
    /// Only windows that end at this step or later
    #[param(nullable = false, minimum = 0, maximum = 9007199254740991_u64)]
    from_step: Option<u64>,
}

/// The run that the path names.
#[derive(Debug)]
pub(in crate::http) struct RunName(pub(in crate::http) String);

impl FromRequestParts<AppState> for RunName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let path = Path::from_request_parts(parts, state).await;
        let Path(run) = path.map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", error.body_text())
        })?;
        Ok(Self(run))
    }
}

pub(in crate::http) fn monitor(state: &AppState) -> Result<&Monitor, ApiError> {
    state.monitor.as_ref().ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "no_latents",
            "this checkpoint has a standard reward head: it has no latents to monitor",
        )
    })
}

/// Every run
#[utoipa::path(
    get,
    path = "/runs",
    tag = "monitor",
    params(ModelQuery),
    responses((status = 200, body = RunList), RunErrors)
)]
pub(in crate::http) async fn list(
    State(state): State<AppState>,
) -> Result<Json<RunList>, ApiError> {
    Ok(Json(RunList { runs: monitor(&state)?.runs() }))
}

/// One run
#[utoipa::path(
    get,
    path = "/runs/{run}",
    tag = "monitor",
    params(("run" = String, Path, description = "Name of the run", min_length = 1), ModelQuery),
    responses((status = 200, body = RunView), RunErrors)
)]
pub(in crate::http) async fn show(
    State(state): State<AppState>,
    RunName(run): RunName,
) -> Result<Json<RunView>, ApiError> {
    Ok(Json(monitor(&state)?.run(&run)?))
}

/// The evaluations of a run
#[utoipa::path(
    get,
    path = "/runs/{run}/evaluations",
    tag = "monitor",
    params(("run" = String, Path, description = "Name of the run", min_length = 1), EvaluationQuery, ModelQuery),
    responses((status = 200, body = EvaluationList), RunErrors)
)]
pub(in crate::http) async fn evaluations(
    State(state): State<AppState>,
    RunName(run): RunName,
    query: Result<Query<EvaluationQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<EvaluationList>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid("/from_step", error.body_text()))?;
    if query.from_step.is_some_and(|step| step > MAX_STEP) {
        return Err(ApiError::invalid("/from_step", format!("must be from 0 to {MAX_STEP}")));
    }
    let evaluations = monitor(&state)?.evaluations(&run, query.from_step)?;
    Ok(Json(EvaluationList { evaluations }))
}

/// Evaluate the open window now
#[utoipa::path(
    post,
    path = "/runs/{run}/evaluate",
    tag = "monitor",
    params(("run" = String, Path, description = "Name of the run", min_length = 1), ModelQuery),
    responses((status = 200, body = Evaluation), (status = 409, body = ErrorAnswer, description = "`empty_window`"), RunErrors)
)]
pub(in crate::http) async fn evaluate(
    State(state): State<AppState>,
    RunName(run): RunName,
) -> Result<Json<Evaluation>, ApiError> {
    let monitor = monitor(&state)?.clone();
    Ok(Json(off_the_event_loop(move || monitor.evaluate(&run)).await??))
}

/// Change settings of a run
///
/// Any of `window`, `min_window`, `csi`, `statistics`, `early_stop`, `alerts` and `shaping`; what is left out stays as it
/// is. A run that is not known yet is made.
#[utoipa::path(
    put,
    path = "/runs/{run}/config",
    tag = "monitor",
    params(("run" = String, Path, description = "Name of the run", min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$"), ModelQuery),
    request_body(content = RunConfig, example = json!({"window": 512, "csi": {"noise": "singletons"}, "early_stop": {"max_ratio": 8}})),
    responses((status = 200, body = RunView), ScoringErrors)
)]
pub(in crate::http) async fn configure(
    State(state): State<AppState>,
    RunName(run): RunName,
    JsonBody(overrides): JsonBody<serde_json::Map<String, serde_json::Value>>,
) -> Result<Json<RunView>, ApiError> {
    check_run(&run)?;
    let monitor = monitor(&state)?.clone();
    Ok(Json(off_the_event_loop(move || monitor.configure(&run, overrides)).await??))
}

/// Forget a run
#[utoipa::path(
    delete,
    path = "/runs/{run}",
    tag = "monitor",
    params(("run" = String, Path, description = "Name of the run", min_length = 1), ModelQuery),
    responses((status = 204, description = "The run is forgotten"), RunErrors)
)]
pub(in crate::http) async fn remove(
    State(state): State<AppState>,
    RunName(run): RunName,
) -> Result<StatusCode, ApiError> {
    let monitor = monitor(&state)?.clone();
    off_the_event_loop(move || monitor.remove(&run)).await??;
    Ok(StatusCode::NO_CONTENT)
}
