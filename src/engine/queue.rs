//! Between connections, planner and device threads: what waits, what is planned, what is under way.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus::IntGauge;
use tokio::sync::oneshot;

use super::backlog::Backlog;
use super::cache::{KnownScore, ScoreCache, ScoreKey};
use super::error::EngineError;
use super::job::{JobError, JobScore};
use super::plan::{self, Bounds, Pace, Policy, Selection};
use super::work::{Waiter, Work};
use crate::model::Score;
use crate::ops::Packing;

/// Part of the time to a deadline, as `left / MARGIN`, that the work ahead of a request may take.
const MARGIN: f64 = 1.6;

/// A job on its way into the queue.
pub(super) struct Request {
    pub(super) ids: Arc<[u32]>,
    pub(super) draws: usize,
    pub(super) key: Option<ScoreKey>,
    /// The score, where only the spread over the draws is missing.
    pub(super) known: Option<Arc<Score>>,
}

/// What came of it.
pub(super) enum Admission {
    /// Its own work waits.
    Queued(Ticket),
    /// Somebody else's work is the same.
    Joined(Ticket),
    /// The work was finished in the meantime.
    Known(KnownScore),
}

/// A claim to an answer.
pub(super) struct Ticket {
    pub(super) work: Arc<Work>,
    pub(super) answer: oneshot::Receiver<Result<JobScore, JobError>>,
}

/// The next work of the device.
pub(super) struct Batch {
    pub(super) works: Vec<Arc<Work>>,
    /// The packing of those that need a forward pass, where it was made ahead.
    pub(super) packing: Option<Packing>,
}

impl Batch {
    /// Tokens of the works, before sharing.
    pub(super) fn tokens(&self) -> usize {
        self.works.iter().map(|work| work.cost()).sum()
    }
}

/// Tokens in the order of the works that need a forward pass.
pub(super) fn sequences(works: &[Arc<Work>]) -> Vec<&[u32]> {
    works.iter().filter(|work| work.known.is_none()).map(|work| &*work.ids).collect()
}

pub(super) struct Queue {
    state: Mutex<QueueState>,
    /// For the device thread.
    arrived: Condvar,
    /// For the planner.
    plannable: Condvar,
    limit: usize,
    bounds: Bounds,
    policy: Policy,
    gauge: IntGauge,
}

#[derive(Default)]
struct QueueState {
    backlog: Backlog,
    /// Work that others may join: what waits, and what the device has.
    flights: HashMap<ScoreKey, Arc<Work>>,
    /// Tokens that the devices have; 0 when all are idle.
    running: usize,
    /// The next batch, packed. Valid until `epoch` changes.
    draft: Option<(Selection, Packing)>,
    /// Counts what makes a draft wrong: a batch that was taken, an arrival that belongs into it.
    epoch: u64,
    /// The epoch that the planner planned last.
    planned: Option<u64>,
    pace: Pace,
    /// Mean tokens of a job, for a first look at requests that are not tokenised yet.
    mean_tokens: f64,
    closed: bool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Queue")
            .field("waiting", &state.backlog.len())
            .field("tokens", &state.backlog.tokens())
            .field("closed", &state.closed)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// `devices` threads take batches.
    pub(super) fn new(
        limit: usize,
        bounds: Bounds,
        devices: usize,
        policy: Policy,
        gauge: IntGauge,
    ) -> Self {
        Self {
            state: Mutex::new(QueueState { pace: Pace::of(devices), ..QueueState::default() }),
            arrived: Condvar::new(),
            plannable: Condvar::new(),
            limit,
            bounds,
            policy,
            gauge,
        }
    }

    /// Whether a request of so many jobs would be admitted, by what jobs were like so far.
    pub(super) fn check_room(
        &self,
        run: Option<&str>,
        jobs: usize,
        deadline: Instant,
    ) -> Result<(), EngineError> {
        let state = self.state.lock();
        let asked = (jobs as f64 * state.mean_tokens.max(1.0)) as usize;
        let own = run.map_or(0, |run| state.backlog.tokens_of(run));
        self.admits(&state, own, asked, deadline, Instant::now())
    }

    /// Whether so many tokens are admitted of a run of which `own` tokens wait.
    fn admits(
        &self,
        state: &QueueState,
        own: usize,
        asked: usize,
        deadline: Instant,
        now: Instant,
    ) -> Result<(), EngineError> {
        if state.closed {
            return Err(EngineError::Draining);
        }
        let waiting = state.backlog.tokens();
        // The queue was filled by the runs that wait: one that does not is let in for some time yet.
        let limit = if own == 0 { self.limit.saturating_mul(2) } else { self.limit };
        // An empty queue takes any one request, so that none is refused for ever.
        if waiting > 0 && waiting + asked > limit {
            let wait = state.pace.time(state.running + waiting);
            return Err(EngineError::QueueFull { waiting, asked, limit, wait });
        }
        // What goes into the next batch is not refused: the pace of small batches, or of a first one that
        // met cold memory, says little of a full one.
        if own == 0 || waiting + asked <= self.bounds.budget {
            return Ok(());
        }
        // A fair share of the device is what the run gets at least.
        let ahead = waiting.min((own + asked) * state.backlog.waiting_runs());
        let wait = state.pace.time(state.running + ahead + asked + self.bounds.budget);
        let left = deadline.saturating_duration_since(now);
        if wait.as_secs_f64() * MARGIN > left.as_secs_f64() {
            return Err(EngineError::Overloaded { wait, left });
        }
        Ok(())
    }

    /// Admits all jobs of a request, or none. A job joins work that is the same where there is some.
    pub(super) fn push(
        &self,
        run: &str,
        requests: Vec<Request>,
        deadline: Instant,
        cache: &ScoreCache,
    ) -> Result<Vec<Admission>, EngineError> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let state = &mut *state;
        let is_new =
            |request: &&Request| request.key.is_none_or(|key| !state.flights.contains_key(&key));
        let cost = |request: &Request| if request.known.is_some() { 1 } else { request.ids.len() };
        let asked = requests.iter().filter(is_new).map(cost).sum();
        let own = state.backlog.tokens_of(run);
        if asked > 0 || state.closed {
            self.admits(state, own, asked, deadline, now)?;
        }
        let mut admitted = Vec::with_capacity(requests.len());
        for Request { ids, draws, key, known } in requests {
            state.mean_tokens += (ids.len() as f64 - state.mean_tokens) / 64.0;
            let (sender, answer) = oneshot::channel();
            let waiter = Waiter { since: now, deadline, answer: sender };
            if let Some(work) = key.and_then(|key| state.flights.get(&key)) {
                work.join(waiter);
                let work = work.clone();
                let place = *work.place.lock();
                if let Some(place) = place {
                    state.backlog.hasten(place, deadline);
                }
                admitted.push(Admission::Joined(Ticket { work, answer }));
                continue;
            }
            // The device enters a score before its flight ends: one of both is found.
            if let Some(known) = key.and_then(|key| cache.get(&key)) {
                admitted.push(Admission::Known(known));
                continue;
            }
            let work = Arc::new(Work::new(ids, draws, key, known, waiter));
            if let Some(key) = key {
                state.flights.insert(key, work.clone());
            }
            state.backlog.push(run, work.clone(), deadline, now);
            admitted.push(Admission::Queued(Ticket { work, answer }));
        }
        self.gauge.set(state.backlog.tokens() as i64);
        // A draft is full: an arrival belongs into it only if its run is not in there, or if it cannot
        // wait for the batch after that.
        let soon = state.pace.time(state.running + 3 * self.bounds.budget);
        if state.draft.is_some() && (own == 0 || now + soon > deadline) {
            state.renew_draft();
        }
        self.arrived.notify_one();
        self.wake_planner(state, now);
        Ok(admitted)
    }

    /// Forgets work that nobody waits for any more.
    pub(super) fn forget(&self, works: &[Arc<Work>]) {
        let now = Instant::now();
        let mut state = self.state.lock();
        for work in works {
            let place = *work.place.lock();
            if let Some(place) = place
                && !work.is_wanted(now)
                && state.backlog.remove(place).is_some()
            {
                state.end_flight(work);
            }
        }
        self.gauge.set(state.backlog.tokens() as i64);
    }

    /// The next batch. Waits for one, and answers `None` when the queue is closed and empty.
    pub(super) fn next_batch(&self) -> Option<Batch> {
        let mut state = self.state.lock();
        loop {
            if let Some(batch) = self.take(&mut state) {
                return Some(batch);
            }
            if state.closed && state.backlog.is_empty() {
                return None;
            }
            self.arrived.wait(&mut state);
        }
    }

    fn take(&self, state: &mut QueueState) -> Option<Batch> {
        let now = Instant::now();
        let draft = state.draft.take();
        state.renew_draft();
        let (mut selection, packing) = match draft {
            Some((selection, packing)) => (selection, Some(packing)),
            None => (self.select(state, now), None),
        };
        let planned = selection.places.len();
        // Clients that left since it was planned.
        selection.places.retain(|&place| {
            let wanted = state.backlog.get(place).is_some_and(|work| work.is_wanted(now));
            if !wanted {
                selection.unwanted.push(place);
            }
            wanted
        });
        for &place in &selection.unwanted {
            if let Some(work) = state.backlog.remove(place) {
                state.end_flight(&work);
            }
        }
        let places = selection.places.iter();
        let works: Vec<_> = places.filter_map(|&place| state.backlog.serve(place)).collect();
        self.gauge.set(state.backlog.tokens() as i64);
        if works.is_empty() {
            return None;
        }
        let batch = Batch { packing: packing.filter(|_| works.len() == planned), works };
        state.running += batch.tokens();
        if !state.backlog.is_empty() {
            // Another device may be idle.
            self.arrived.notify_one();
        }
        self.wake_planner(state, now);
        Some(batch)
    }

    /// The selection of the next batch. Where the policy itself fails, the oldest work: requests must
    /// not be stuck behind a fault of ours.
    fn select(&self, state: &QueueState, now: Instant) -> Selection {
        let select = || (self.policy)(&state.backlog, self.bounds, state.pace, state.running, now);
        catch_unwind(AssertUnwindSafe(select)).unwrap_or_else(|_| {
            tracing::error!("planning failed: the oldest work goes alone");
            let places = state.backlog.oldest().into_iter().collect();
            Selection { places, unwanted: Vec::new() }
        })
    }

    /// Plans while the device works. A batch that is not full is not planned ahead: what arrives until the
    /// device is free belongs into it. Returns when the queue is closed: what is left is planned by the
    /// device thread.
    pub(super) fn plan_ahead(&self) {
        let mut state = self.state.lock();
        while !state.closed {
            let now = Instant::now();
            if !self.is_plannable(&state, now) {
                self.plannable.wait(&mut state);
                continue;
            }
            let epoch = state.epoch;
            state.planned = Some(epoch);
            let selection = self.select(&state, now);
            let places = selection.places.iter();
            let works: Vec<Arc<Work>> =
                places.filter_map(|&place| state.backlog.get(place)).cloned().collect();
            drop(state);
            let pack = || Packing::shared(&sequences(&works));
            let packing = catch_unwind(AssertUnwindSafe(pack)).unwrap_or_else(|_| {
                tracing::error!("packing ahead failed");
                None
            });
            state = self.state.lock();
            if state.epoch == epoch {
                state.draft = packing.map(|packing| (selection, packing));
            }
        }
    }

    fn is_plannable(&self, state: &QueueState, now: Instant) -> bool {
        state.running > 0
            && state.planned != Some(state.epoch)
            && state.backlog.tokens() >= plan::limit(&state.backlog, self.bounds, now)
    }

    fn wake_planner(&self, state: &QueueState, now: Instant) {
        if self.is_plannable(state, now) {
            self.plannable.notify_one();
        }
    }

    /// Nobody can join these works any more. Scores must be in the cache before.
    pub(super) fn settle(&self, works: &[Arc<Work>]) {
        let mut state = self.state.lock();
        works.iter().for_each(|work| state.end_flight(work));
    }

    /// A device is done with a batch of so many tokens.
    pub(super) fn finished(&self, tokens: usize, time: Duration) {
        let mut state = self.state.lock();
        state.running = state.running.saturating_sub(tokens);
        state.pace.record(tokens, time);
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
        self.plannable.notify_all();
    }

    /// Closes, and drops whatever still waits.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.renew_draft();
        let backlog = std::mem::take(&mut state.backlog);
        let flights = std::mem::take(&mut state.flights);
        self.gauge.set(0);
        drop(state);
        drop((backlog, flights));
        self.arrived.notify_all();
        self.plannable.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

impl QueueState {
    fn renew_draft(&mut self) {
        self.draft = None;
        self.epoch += 1;
    }

    fn end_flight(&mut self, work: &Arc<Work>) {
        if let Some(key) = &work.key
            && self.flights.get(key).is_some_and(|flight| Arc::ptr_eq(flight, work))
        {
            self.flights.remove(key);
        }
    }
}
