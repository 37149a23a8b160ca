//! The page at `/`: the runs, or one of them, written on the server; a small script keeps it up to date.

mod view;

use std::sync::LazyLock;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::handlers::tagged;
use crate::http::middleware::ModelQuery;
use crate::http::state::{ApiError, AppState, ErrorAnswer, KeyError};
use crate::plots::{MapProjection, page_style};

/// Nothing from elsewhere, nothing written into the page: no text of a run can become a script or a style.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page shows.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// A run; without it the page lists all
    #[param(nullable = false)]
    run: Option<String>,
    /// How its latent map is made; default `pca`. `tsne` appears when it is computed
    #[param(nullable = false, inline)]
    projection: Option<MapProjection>,
}

/// The page for people
#[utoipa::path(
    get,
    path = "/",
    tag = "monitor",
    params(PageQuery, ModelQuery),
    responses(
        (status = 200, body = String, content_type = "text/html"),
        (status = 304, description = "It is as `If-None-Match` says"),
        (status = 400, body = ErrorAnswer, description = "`invalid_request`"),
        (
            status = 404,
            content((String = "text/html"), (ErrorAnswer = "application/json")),
            description = "The page says that there is no such run; or `unknown_model`"
        ),
        KeyError
    )
)]
pub(super) async fn page(
    State(state): State<AppState>,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid("", error.body_text()))?;
    begin_tsne(&state, &query);
    let work = {
        let state = state.clone();
        move || view::render(&state, query.run.as_deref(), query.projection.unwrap_or_default())
    };
    let (status, html) = state.plots.in_turn(work).await??;
    let mut response = tagged(&headers, "text/html; charset=utf-8", POLICY, html);
    if status != StatusCode::OK {
        *response.status_mut() = status;
    }
    Ok(response)
}

/// Sees to it that a map by t-SNE of the run's last window is on its way, where the page asks for one.
fn begin_tsne(state: &AppState, query: &PageQuery) {
    let (Some(monitor), Some(run), Some(MapProjection::Tsne)) =
        (&state.monitor, &query.run, query.projection)
    else {
        return;
    };
    // One at a time: the page asks again.
    if state.plots.is_busy() {
        return;
    }
    if let Ok(Some(latest)) = monitor.latest(run) {
        tokio::spawn(state.plots.clone().tsne(run.clone(), latest));
    }
}

/// A part of the page
#[utoipa::path(
    get,
    path = "/assets/{name}",
    tag = "monitor",
    params(("name" = String, Path, description = "`page.css`, `page.js` or `icon.svg`", min_length = 1)),
    responses(
        (status = 200, body = String, content_type = "text/css"),
        (status = 304, description = "It is as `If-None-Match` says"),
        (status = 404, body = ErrorAnswer, description = "`not_found`"),
        KeyError
    )
)]
pub(super) async fn asset(
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, ApiError> {
    static STYLE: LazyLock<String> =
        LazyLock::new(|| format!("{}{}", page_style(), include_str!("page.css")));
    let (content_type, text) = match name.as_str() {
        "page.css" => ("text/css; charset=utf-8", STYLE.as_str()),
        "page.js" => ("text/javascript; charset=utf-8", include_str!("page.js")),
        "icon.svg" => ("image/svg+xml", include_str!("icon.svg")),
        _ => {
            let message = "the page has no such part";
            return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
        }
    };
    Ok(tagged(&headers, content_type, "default-src 'none'", text.to_owned()))
}
