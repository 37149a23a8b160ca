//! Plots of a run over HTTP: drawn off the event loop, one at a time, and kept until the next evaluation.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::runs::monitor;
use crate::http::middleware::ModelQuery;
use crate::http::state::{ApiError, AppState, ErrorAnswer, KeyError, Plot};
use crate::plots::{Curve, LatentMap, MapProjection, PlotError, Size, Theme};

const WIDTHS: std::ops::RangeInclusive<u32> = 240..=2000;
const HEIGHTS: std::ops::RangeInclusive<u32> = 160..=2000;

/// How a plot is to look.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PlotQuery {
    /// Pixels; default 640
    #[param(nullable = false, minimum = 240, maximum = 2000)]
    width: Option<u32>,
    /// Pixels; default 360, for the latent map 480
    #[param(nullable = false, minimum = 160, maximum = 2000)]
    height: Option<u32>,
    /// Default `auto`: as the reader's system prefers
    #[param(nullable = false, inline)]
    theme: Option<Theme>,
    /// Of the latent map, curves take no notice of it; default `pca`. `tsne` takes seconds
    #[param(nullable = false, inline)]
    projection: Option<MapProjection>,
}

/// A plot.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only described")]
pub(in crate::http) enum PlotFile {
    #[schema(rename = "csi.svg")]
    Csi,
    #[schema(rename = "ratio.svg")]
    Ratio,
    #[schema(rename = "energy.svg")]
    Energy,
    #[schema(rename = "mop.svg")]
    Mop,
    #[schema(rename = "rewards.svg")]
    Rewards,
    #[schema(rename = "length.svg")]
    Length,
    #[schema(rename = "dispersion.svg")]
    Dispersion,
    #[schema(rename = "latents.svg")]
    Latents,
}

/// A plot of a run
#[utoipa::path(
    get,
    path = "/runs/{run}/{plot}",
    tag = "monitor",
    params(
        ("run" = String, Path, description = "Name of the run", min_length = 1),
        ("plot" = inline(PlotFile), Path, description = "Curves over the steps with alerts marked, or the latent map of the last window"),
        PlotQuery,
        ModelQuery
    ),
    responses(
        (status = 200, body = String, content_type = "image/svg+xml"),
        (status = 304, description = "It is as `If-None-Match` says"),
        (status = 400, body = ErrorAnswer, description = "`invalid_request`"),
        (status = 404, body = ErrorAnswer, description = "`unknown_model`, `unknown_run`, `not_found`, or `no_latents`"),
        KeyError
    )
)]
pub(in crate::http) async fn plot(
    State(state): State<AppState>,
    path: Result<Path<(String, String)>, axum::extract::rejection::PathRejection>,
    query: Result<Query<PlotQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Path((run, file)) = path.map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", error.body_text())
    })?;
    let Some(plot) = named(&file) else {
        let message = format!("there is no `{file}` of a run");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    let Query(query) = query.map_err(|error| ApiError::invalid("", error.body_text()))?;
    let size = query.size(plot)?;
    let theme = query.theme.unwrap_or_default();
    let monitor = monitor(&state)?.clone();
    let cache = state.plots.clone();
    let svg = match plot {
        Plot::Curve(curve) => {
            let work = move || -> Result<String, ApiError> {
                let snapshot = cache.snapshot(&monitor, &run)?;
                Ok(cache.curve(&snapshot, curve, size, true)?.standalone(theme))
            };
            state.plots.in_turn(work).await??
        }
        Plot::Map(_) => {
            let projection = query.projection.unwrap_or_default();
            let latest = monitor.latest(&run)?;
            let map = match (latest, projection) {
                (None, _) => None,
                (Some(latest), MapProjection::Tsne) => {
                    Some(cache.clone().tsne(run.clone(), latest).await?)
                }
                (Some(latest), MapProjection::Pca) => {
                    let (cache, run) = (cache.clone(), run.clone());
                    Some(state.plots.in_turn(move || cache.principal(&run, latest)).await?)
                }
            };
            let work = move || -> Result<String, ApiError> {
                let drawing = match map {
                    Some(map) => cache.map(&map, projection, size, true)?,
                    None => Arc::new(nothing_yet(run).draw(size, true)?),
                };
                Ok(drawing.standalone(theme))
            };
            state.plots.in_turn(work).await??
        }
    };
    // A document of its own when it is opened as one: it may style itself and nothing else.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
    Ok(tagged(&headers, "image/svg+xml", policy, svg))
}

/// The map of a run without evaluations.
pub(in crate::http) fn nothing_yet(run: String) -> LatentMap {
    LatentMap { run, empty: "No window was evaluated yet.".to_owned(), ..LatentMap::default() }
}

fn named(file: &str) -> Option<Plot> {
    let name = file.strip_suffix(".svg")?;
    if name == "latents" {
        return Some(Plot::Map(MapProjection::Pca));
    }
    Curve::ALL.into_iter().find(|curve| curve.name() == name).map(Plot::Curve)
}

impl PlotQuery {
    fn size(&self, plot: Plot) -> Result<Size, ApiError> {
        let default = match plot {
            Plot::Curve(_) => Size::CURVE,
            Plot::Map(_) => Size::MAP,
        };
        let within = |name: &str, value: Option<u32>, range: std::ops::RangeInclusive<u32>| {
            let wrong = value.filter(|value| !range.contains(value));
            wrong.map_or(Ok(()), |value| {
                let message = format!(
                    "{name} must be from {} to {}, not {value}",
                    range.start(),
                    range.end()
                );
                Err(ApiError::invalid(format!("/{name}"), message))
            })
        };
        within("width", self.width, WIDTHS)?;
        within("height", self.height, HEIGHTS)?;
        Ok(Size {
            width: self.width.unwrap_or(default.width),
            height: self.height.unwrap_or(default.height),
        })
    }
}

/// An answer that a browser asks again for each time it shows it, and gets anew only where it has changed.
pub(in crate::http) fn tagged(
    headers: &HeaderMap,
    content_type: &'static str,
    policy: &'static str,
    body: String,
) -> Response {
    let digest: [u8; 32] = Sha256::digest(body.as_bytes()).into();
    let short = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // Weak: the same content may be sent compressed or not.
    let tag = format!("W/\"{short}\"");
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .any(|value| value.to_str().is_ok_and(|list| list.split(',').any(|one| one.trim() == tag)));
    let common = [
        (header::ETAG, tag.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    if known {
        (StatusCode::NOT_MODIFIED, common).into_response()
    } else {
        (common, [(header::CONTENT_TYPE, content_type)], body).into_response()
    }
}

impl From<PlotError> for ApiError {
    fn from(error: PlotError) -> Self {
        Self::internal(error.to_string())
    }
}
