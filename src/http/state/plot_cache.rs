//! Plots that were drawn, until the next evaluation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::blocking::off_the_event_loop;
use super::error::ApiError;
use crate::monitor::{Evaluation, Latest, Monitor, MonitorError};
use crate::plots::{
    Curve, Drawing, LatentMap, MapProjection, PlotError, RunCurves, Size, farthest, project,
};

/// Bytes of drawings that are kept.
const CACHE_BYTES: u64 = 32 << 20;
/// Runs whose rows and maps are kept.
const CACHE_RUNS: u64 = 64;
/// How nice a thread of t-SNE is to those that score.
const NICENESS: i32 = 10;

/// Shortest time over which a rate is measured.
const RATE_OVER: Duration = Duration::from_secs(5);

/// What was drawn already, and what keeps drawing from taking more than one processor.
#[derive(Debug)]
pub struct PlotCache {
    drawings: Cache<DrawingKey, Arc<Drawing>>,
    curves: Cache<String, Arc<Snapshot>>,
    maps: Cache<(String, MapProjection), Arc<RunMap>>,
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
pub(in crate::http) type Version = Option<(u64, u64)>;

pub(in crate::http) fn version(last: Option<&Evaluation>) -> Version {
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
pub(in crate::http) enum Plot {
    Curve(Curve),
    Map(MapProjection),
}

/// A run's evaluations as of one of them.
#[derive(Debug)]
pub(in crate::http) struct Snapshot {
    version: Version,
    pub(in crate::http) curves: RunCurves,
}

/// The latent map of one evaluation.
#[derive(Debug)]
pub(in crate::http) struct RunMap {
    pub(in crate::http) version: Version,
    pub(in crate::http) map: LatentMap,
    /// The window that it shows, and the positions in it and distances of what is marked.
    pub(in crate::http) latest: Latest,
    pub(in crate::http) farthest: Vec<(usize, f64)>,
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
    pub(in crate::http) async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        // The semaphore is never closed.
        let _turn = self.turn.acquire().await;
        off_the_event_loop(work).await
    }

    /// Tokens a second since the page was looked at before, some seconds ago at least. `tokens` is their
    /// counter.
    pub(in crate::http) fn rate(&self, tokens: u64) -> f64 {
        let mut rate = self.rate.lock();
        let passed = rate.at.elapsed();
        if passed >= RATE_OVER {
            let per_second = tokens.saturating_sub(rate.tokens) as f64 / passed.as_secs_f64();
            *rate = Rate { at: Instant::now(), tokens, per_second };
        }
        rate.per_second
    }

    /// The run's evaluations.
    pub(in crate::http) fn snapshot(
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
    pub(in crate::http) fn curve(
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
    pub(in crate::http) fn map(
        &self,
        map: &RunMap,
        projection: MapProjection,
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
    pub(in crate::http) fn last_tsne(&self, run: &str) -> Option<Arc<RunMap>> {
        self.maps.get(&(run.to_owned(), MapProjection::Tsne))
    }

    /// The map of a window by principal components, at once.
    pub(in crate::http) fn principal(&self, run: &str, latest: Latest) -> Arc<RunMap> {
        self.known(run, &latest, MapProjection::Pca)
            .unwrap_or_else(|| self.make(run, latest, MapProjection::Pca))
    }

    fn known(&self, run: &str, latest: &Latest, projection: MapProjection) -> Option<Arc<RunMap>> {
        let known = self.maps.get(&(run.to_owned(), projection))?;
        (known.version == version(Some(&latest.evaluation))).then_some(known)
    }

    fn make(&self, run: &str, latest: Latest, projection: MapProjection) -> Arc<RunMap> {
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
    pub(in crate::http) fn is_busy(&self) -> bool {
        self.tsne.available_permits() == 0
    }

    /// The map of a window by t-SNE: on a thread of its own that gives way to those that score, one at a
    /// time.
    pub(in crate::http) async fn tsne(
        self: Arc<Self>,
        run: String,
        latest: Latest,
    ) -> Result<Arc<RunMap>, ApiError> {
        let turn = self.tsne.clone().acquire_owned().await;
        if let Some(known) = self.known(&run, &latest, MapProjection::Tsne) {
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
            let _ = give.send(cache.make(&run, latest, MapProjection::Tsne));
        });
        thread.map_err(|error| ApiError::internal(format!("no thread for t-SNE: {error}")))?;
        wait.await.map_err(|_| ApiError::internal("t-SNE failed; the log says why"))
    }
}
