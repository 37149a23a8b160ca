//! The work that waits, by run, by age, by deadline and by its tokens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::work::{Work, WorkPlace};

/// A run counts as active for this long after its last request: what decides how long its next request
/// may have to wait was decided before it came.
const ACTIVE: Duration = Duration::from_secs(10);

/// Work that waits, and the deadline by which it is filed.
#[derive(Debug)]
pub(super) struct WaitingWork {
    pub(super) work: Arc<Work>,
    deadline: Instant,
}

/// What waits of one run.
#[derive(Debug)]
pub(super) struct Lane {
    run: String,
    /// By age.
    pub(super) waiting: BTreeMap<u64, WaitingWork>,
    /// In the order of the token ids: neighbours have the most tokens in common.
    pub(super) sorted: BTreeSet<(Arc<[u32]>, u64)>,
    pub(super) tokens: usize,
    /// Tokens that the run was served, as start-time fair queueing counts them.
    pub(super) served: u64,
    last_arrival: Instant,
}

/// Everything that waits.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    lanes: BTreeMap<u64, Lane>,
    by_run: HashMap<String, u64>,
    deadlines: BTreeSet<(Instant, WorkPlace)>,
    tokens: usize,
    next: u64,
    /// `served` of the run that was served last: a run that begins to wait starts from there.
    clock: u64,
}

impl Backlog {
    /// Tokens that wait.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Pieces of work that wait.
    pub(super) fn len(&self) -> usize {
        self.deadlines.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Tokens that wait of a run.
    pub(super) fn tokens_of(&self, run: &str) -> usize {
        self.by_run.get(run).and_then(|lane| self.lanes.get(lane)).map_or(0, |lane| lane.tokens)
    }

    /// Runs of which something waits.
    pub(super) fn waiting_runs(&self) -> usize {
        self.lanes.values().filter(|lane| !lane.waiting.is_empty()).count()
    }

    /// Adds work to a run's lane.
    pub(super) fn push(&mut self, run: &str, work: Arc<Work>, deadline: Instant, now: Instant) {
        let lane = match self.by_run.get(run) {
            Some(&lane) => lane,
            None => self.open_lane(run, now),
        };
        let Some(state) = self.lanes.get_mut(&lane) else { return };
        if state.waiting.is_empty() {
            state.served = state.served.max(self.clock);
        }
        state.last_arrival = now;
        let number = self.next;
        self.next += 1;
        let place = WorkPlace { lane, number };
        work.place.lock().replace(place);
        state.tokens += work.cost();
        self.tokens += work.cost();
        state.sorted.insert((work.ids.clone(), number));
        state.waiting.insert(number, WaitingWork { work, deadline });
        self.deadlines.insert((deadline, place));
    }

    fn open_lane(&mut self, run: &str, now: Instant) -> u64 {
        // Names come from outside: those that are not in use are forgotten.
        let idle: Vec<u64> = self
            .lanes
            .iter()
            .filter(|(_, lane)| !lane.is_active(now))
            .map(|(&number, _)| number)
            .collect();
        for number in idle {
            if let Some(lane) = self.lanes.remove(&number) {
                self.by_run.remove(&lane.run);
            }
        }
        let number = self.next;
        self.next += 1;
        let lane = Lane {
            run: run.to_owned(),
            waiting: BTreeMap::new(),
            sorted: BTreeSet::new(),
            tokens: 0,
            served: self.clock,
            last_arrival: now,
        };
        self.lanes.insert(number, lane);
        self.by_run.insert(run.to_owned(), number);
        number
    }

    /// Files work under an earlier deadline.
    pub(super) fn hasten(&mut self, place: WorkPlace, deadline: Instant) {
        let entry = self.lanes.get_mut(&place.lane).and_then(|l| l.waiting.get_mut(&place.number));
        if let Some(entry) = entry.filter(|entry| deadline < entry.deadline) {
            self.deadlines.remove(&(entry.deadline, place));
            entry.deadline = deadline;
            self.deadlines.insert((deadline, place));
        }
    }

    pub(super) fn remove(&mut self, place: WorkPlace) -> Option<Arc<Work>> {
        let lane = self.lanes.get_mut(&place.lane)?;
        let WaitingWork { work, deadline } = lane.waiting.remove(&place.number)?;
        lane.sorted.remove(&(work.ids.clone(), place.number));
        lane.tokens -= work.cost();
        self.tokens -= work.cost();
        self.deadlines.remove(&(deadline, place));
        work.place.lock().take();
        Some(work)
    }

    /// Takes the place of a served piece of work, and counts it against its run.
    pub(super) fn serve(&mut self, place: WorkPlace) -> Option<Arc<Work>> {
        let work = self.remove(place)?;
        if let Some(lane) = self.lanes.get_mut(&place.lane) {
            self.clock = self.clock.max(lane.served);
            lane.served += work.cost() as u64;
        }
        Some(work)
    }

    pub(super) fn get(&self, place: WorkPlace) -> Option<&Arc<Work>> {
        Some(&self.lanes.get(&place.lane)?.waiting.get(&place.number)?.work)
    }

    /// The lanes of runs that wait or were active of late.
    pub(super) fn active_lanes(&self, now: Instant) -> impl Iterator<Item = (u64, &Lane)> {
        let active = self.lanes.iter().filter(move |(_, lane)| lane.is_active(now));
        active.map(|(&number, lane)| (number, lane))
    }

    /// Places in the order of their deadlines.
    pub(super) fn by_deadline(&self) -> impl Iterator<Item = (Instant, WorkPlace)> {
        self.deadlines.iter().copied()
    }

    /// The piece of work that came first.
    pub(super) fn oldest(&self) -> Option<WorkPlace> {
        let first = |(&lane, state): (&u64, &Lane)| {
            Some(WorkPlace { lane, number: *state.waiting.first_key_value()?.0 })
        };
        self.lanes.iter().filter_map(first).min_by_key(|place| place.number)
    }
}

impl Lane {
    fn is_active(&self, now: Instant) -> bool {
        !self.waiting.is_empty() || now.duration_since(self.last_arrival) < ACTIVE
    }
}
