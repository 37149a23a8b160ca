//! Plots of a run over HTTP: drawn off the event loop, one at a time, and kept until the next evaluation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use moka::sync::Cache;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, oneshot};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::error::{ApiError, ErrorAnswer, KeyError};
use super::models::ModelQuery;
use super::runs::{monitor, off_the_event_loop};
use crate::monitor::{Evaluation, Latest, Monitor, MonitorError};
use crate::plots::{
    Curve, Drawing, LatentMap, PlotError, Projection, RunCurves, Size, Theme, farthest, project,
};

/// Bytes of drawings that are kept.
const CACHE_BYTES: u64 = 32 << 20;
/// Runs whose rows and maps are kept.
const CACHE_RUNS: u64 = 64;
/// How nice a thread of t-SNE is to those that score.
const NICENESS: i32 = 10;

/// Shortest time over which a rate is measured.
const RATE_OVER: Duration = Duration::from_secs(5);

const WIDTHS: std::ops::RangeInclusive<u32> = 240..=2000;
const HEIGHTS: std::ops::RangeInclusive<u32> = 160..=2000;

/// What was drawn already, and what keeps drawing from taking more than one processor.
#[derive(Debug)]
pub struct PlotCache {
    drawings: Cache<DrawingKey, Arc<Drawing>>,
    curves: Cache<String, Arc<Snapshot>>,
    maps: Cache<(String, Projection), Arc<RunMap>>,
    turn: Semaphore,
    tsne: Arc<Semaphore>,
    rate: Mutex<Rate>,
}

/// Tokens a second between two looks at their counter.
#[derive(Debug)]
struct Rate {
    at: Instant,
    tokens: u64,
    per_second: f64,
}

/// Which evaluation of a run something shows: its number, and the bits of the time when it ended, for a run
/// that was deleted counts anew.
pub(super) type Version = Option<(u64, u64)>;

pub(super) fn version(last: Option<&Evaluation>) -> Version {
    last.map(|row| (row.number, row.finished_at.to_bits()))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct DrawingKey {
    run: String,
    version: Version,
    plot: Plot,
    size: Size,
    titled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Plot {
    Curve(Curve),
    Map(Projection),
}

/// A run's evaluations as of one of them.
#[derive(Debug)]
pub(super) struct Snapshot {
    version: Version,
    pub(super) curves: RunCurves,
}

/// The latent map of one evaluation.
#[derive(Debug)]
pub(super) struct RunMap {
    pub(super) version: Version,
    pub(super) map: LatentMap,
    /// The window that it shows, and the positions in it and distances of what is marked.
    pub(super) latest: Latest,
    pub(super) farthest: Vec<(usize, f64)>,
}

impl Default for PlotCache {
    fn default() -> Self {
        let bytes = |_: &DrawingKey, drawing: &Arc<Drawing>| {
            u32::try_from(drawing.bytes()).unwrap_or(u32::MAX)
        };
        Self {
            drawings: Cache::builder().weigher(bytes).max_capacity(CACHE_BYTES).build(),
            curves: Cache::new(CACHE_RUNS),
            maps: Cache::new(2 * CACHE_RUNS),
            turn: Semaphore::new(1),
            tsne: Arc::new(Semaphore::new(1)),
            rate: Mutex::new(Rate { at: Instant::now(), tokens: 0, per_second: 0.0 }),
        }
    }
}

impl PlotCache {
    /// Does what draws off the event loop when it is its turn.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        // The semaphore is never closed.
        let _turn = self.turn.acquire().await;
        off_the_event_loop(work).await
    }

    /// Tokens a second since the page was looked at before, some seconds ago at least. `tokens` is their
    /// counter.
    pub(super) fn rate(&self, tokens: u64) -> f64 {
        let mut rate = self.rate.lock();
        let passed = rate.at.elapsed();
        if passed >= RATE_OVER {
            let per_second = tokens.saturating_sub(rate.tokens) as f64 / passed.as_secs_f64();
            *rate = Rate { at: Instant::now(), tokens, per_second };
        }
        rate.per_second
    }

    /// The run's evaluations.
    pub(super) fn snapshot(
        &self,
        monitor: &Monitor,
        run: &str,
    ) -> Result<Arc<Snapshot>, MonitorError> {
        let last = monitor.last_evaluation(run);
        if let Some(known) = self.curves.get(run)
            && last.is_some()
            && known.version == version(last.as_ref())
        {
            return Ok(known);
        }
        let view = monitor.run(run)?;
        let rows = monitor.evaluations(run, None)?;
        let snapshot = Arc::new(Snapshot {
            version: version(rows.last()),
            curves: RunCurves::of(&view, rows),
        });
        self.curves.insert(run.to_owned(), snapshot.clone());
        Ok(snapshot)
    }

    /// A plot of curves.
    pub(super) fn curve(
        &self,
        snapshot: &Snapshot,
        curve: Curve,
        size: Size,
        titled: bool,
    ) -> Result<Arc<Drawing>, PlotError> {
        let run = snapshot.curves.run.clone();
        let plot = Plot::Curve(curve);
        let key = DrawingKey { run, version: snapshot.version, plot, size, titled };
        self.draw(key, || snapshot.curves.draw(curve, size, titled))
    }

    /// The drawing of a map.
    pub(super) fn map(
        &self,
        map: &RunMap,
        projection: Projection,
        size: Size,
        titled: bool,
    ) -> Result<Arc<Drawing>, PlotError> {
        let run = map.map.run.clone();
        let plot = Plot::Map(projection);
        let key = DrawingKey { run, version: map.version, plot, size, titled };
        self.draw(key, || map.map.draw(size, titled))
    }

    fn draw(
        &self,
        key: DrawingKey,
        draw: impl FnOnce() -> Result<Drawing, PlotError>,
    ) -> Result<Arc<Drawing>, PlotError> {
        if let Some(known) = self.drawings.get(&key) {
            return Ok(known);
        }
        let drawing = Arc::new(draw()?);
        self.drawings.insert(key, drawing.clone());
        Ok(drawing)
    }

    /// The last map of a run that was made by t-SNE, whatever window it shows.
    pub(super) fn last_tsne(&self, run: &str) -> Option<Arc<RunMap>> {
        self.maps.get(&(run.to_owned(), Projection::Tsne))
    }

    /// The map of a window by principal components, at once.
    pub(super) fn principal(&self, run: &str, latest: Latest) -> Arc<RunMap> {
        self.known(run, &latest, Projection::Pca)
            .unwrap_or_else(|| self.make(run, latest, Projection::Pca))
    }

    fn known(&self, run: &str, latest: &Latest, projection: Projection) -> Option<Arc<RunMap>> {
        let known = self.maps.get(&(run.to_owned(), projection))?;
        (known.version == version(Some(&latest.evaluation))).then_some(known)
    }

    fn make(&self, run: &str, latest: Latest, projection: Projection) -> Arc<RunMap> {
        let farthest = farthest(&latest);
        let map = Arc::new(RunMap {
            version: version(Some(&latest.evaluation)),
            map: project(run, &latest, &farthest, projection),
            latest,
            farthest,
        });
        self.maps.insert((run.to_owned(), projection), map.clone());
        map
    }

    /// Whether a t-SNE is being computed.
    pub(super) fn is_busy(&self) -> bool {
        self.tsne.available_permits() == 0
    }

    /// The map of a window by t-SNE: on a thread of its own that gives way to those that score, one at a
    /// time.
    pub(super) async fn tsne(
        self: Arc<Self>,
        run: String,
        latest: Latest,
    ) -> Result<Arc<RunMap>, ApiError> {
        let turn = self.tsne.clone().acquire_owned().await;
        if let Some(known) = self.known(&run, &latest, Projection::Tsne) {
            return Ok(known);
        }
        let (give, wait) = oneshot::channel();
        let cache = self.clone();
        let thread = std::thread::Builder::new().name("t-sne".to_owned()).spawn(move || {
            // Held until the thread ends, whether or not anybody still waits.
            let _turn = turn;
            if let Err(error) = rustix::process::nice(NICENESS) {
                tracing::debug!(%error, "t-SNE runs at the usual priority");
            }
            let _ = give.send(cache.make(&run, latest, Projection::Tsne));
        });
        thread.map_err(|error| ApiError::internal(format!("no thread for t-SNE: {error}")))?;
        wait.await.map_err(|_| ApiError::internal("t-SNE failed; the log says why"))
    }
}

/// How a plot is to look.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PlotQuery {
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
    projection: Option<Projection>,
}

/// A plot.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "only described")]
pub(super) enum PlotFile {
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
pub(super) async fn plot(
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
                (Some(latest), Projection::Tsne) => {
                    Some(cache.clone().tsne(run.clone(), latest).await?)
                }
                (Some(latest), Projection::Pca) => {
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
pub(super) fn nothing_yet(run: String) -> LatentMap {
    LatentMap { run, empty: "No window was evaluated yet.".to_owned(), ..LatentMap::default() }
}

fn named(file: &str) -> Option<Plot> {
    let name = file.strip_suffix(".svg")?;
    if name == "latents" {
        return Some(Plot::Map(Projection::Pca));
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
pub(super) fn tagged(
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
