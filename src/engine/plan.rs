//! Which work is the next batch.
//!
//! 1. The run that was served the fewest tokens goes next (start-time fair queueing, Goyal et al. 1996).
//! 2. Of a run, where the backlog would miss a deadline even if it were served by deadline, what must be
//!    done by then goes first (earliest deadline first, Liu and Layland 1973), else the oldest. A run
//!    cannot buy another's share with its deadlines.
//! 3. With each piece of work goes what has its beginning in common with it in the same run: the answers
//!    to one prompt, whether they came in one request or in many.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::{Duration, Instant};

use super::backlog::{Backlog, Lane};
use super::work::WorkPlace;

/// Shortest common beginning for which work is taken out of turn, as in [`crate::ops::Packing`].
const MIN_SHARED: usize = 16;
/// Share of a sequence, as a divisor, that must be common.
const SHARED_PART: usize = 4;

/// Part of a short batch, as a divisor, up to which runs with much to do fill it up beside one with little:
/// that one waits for the whole batch, and theirs may come in the next.
const FILLED: usize = 4;

/// What bounds a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Tokens of a batch.
    pub(super) budget: usize,
    /// Tokens of a batch that a run with little to do may have to wait for.
    pub(super) turn: usize,
}

/// How fast the device is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    tokens: f64,
    seconds: f64,
    devices: usize,
}

impl Pace {
    /// Of so many devices together, each as fast as those that were measured.
    pub(super) fn of(devices: usize) -> Self {
        Self { devices, ..Self::default() }
    }

    /// Weight of what was measured before a batch.
    const MEMORY: f64 = 0.8;

    pub(super) fn record(&mut self, tokens: usize, time: Duration) {
        self.tokens = Self::MEMORY * self.tokens + tokens as f64;
        self.seconds = Self::MEMORY * self.seconds + time.as_secs_f64();
    }

    /// Time for so many tokens; zero while nothing was measured.
    pub(super) fn time(&self, tokens: usize) -> Duration {
        if self.tokens > 0.0 {
            let tokens = tokens as f64 / self.devices.max(1) as f64;
            Duration::try_from_secs_f64(tokens * self.seconds / self.tokens)
                .unwrap_or(Duration::MAX)
        } else {
            Duration::ZERO
        }
    }
}

/// The work of the next batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// At least one where anybody still waits for anything.
    pub(super) places: Vec<WorkPlace>,
    /// Work that nobody waits for any more.
    pub(super) unwanted: Vec<WorkPlace>,
}

/// Tokens of the next batch. Where several runs are active and one of them has less to do than its share
/// of a batch, batches are short: its next request would wait for a whole one.
pub(super) fn limit(backlog: &Backlog, bounds: Bounds, now: Instant) -> usize {
    match light(backlog, bounds, now) {
        Some(_) => bounds.turn.min(bounds.budget),
        None => bounds.budget,
    }
}

/// Tokens up to which a run has little to do, where there is such a run beside others.
fn light(backlog: &Backlog, bounds: Bounds, now: Instant) -> Option<usize> {
    let (mut runs, mut least) = (0, usize::MAX);
    for (_, lane) in backlog.active_lanes(now) {
        runs += 1;
        least = least.min(lane.tokens);
    }
    (runs > 1 && least <= bounds.budget / runs).then(|| bounds.budget / runs)
}

/// What chooses the next batch, see [`select`].
pub(super) type Policy = fn(&Backlog, Bounds, Pace, usize, Instant) -> Selection;

/// Chooses the next batch. `running` are the tokens that the device has before it.
pub(super) fn select(
    backlog: &Backlog,
    bounds: Bounds,
    pace: Pace,
    running: usize,
    now: Instant,
) -> Selection {
    let limit = limit(backlog, bounds, now);
    let light = if limit < bounds.budget { light(backlog, bounds, now) } else { None };
    let mut picker = Picker {
        backlog,
        now,
        limit,
        light: light.unwrap_or(0),
        holds_light: false,
        tokens: 0,
        out_of_turn: 0,
        seen: HashSet::new(),
        selection: Selection::default(),
    };
    let everything = backlog.tokens() <= limit;
    let urgent = if everything { Vec::new() } else { urgent(backlog, limit, pace, running, now) };
    picker.in_turn(&urgent, everything);
    picker.selection
}

/// What must go first, in order of deadlines, for none to be missed.
fn urgent(
    backlog: &Backlog,
    limit: usize,
    pace: Pace,
    running: usize,
    now: Instant,
) -> Vec<WorkPlace> {
    // Work that this batch leaves out is done at the end of the next.
    let mut ahead = running + 2 * limit;
    let all = now + pace.time(ahead + backlog.tokens());
    if backlog.by_deadline().next().is_none_or(|(first, _)| all < first) {
        return Vec::new();
    }
    let mut places = Vec::new();
    let mut urgent = 0;
    for (deadline, place) in backlog.by_deadline() {
        let cost = backlog.get(place).map_or(0, |work| work.cost());
        // What cannot be done in time whatever goes first must not hold up the others.
        if now + pace.time(running + cost) > deadline {
            continue;
        }
        ahead += cost;
        places.push(place);
        if now + pace.time(ahead) > deadline {
            urgent = places.len();
        }
    }
    places.truncate(urgent);
    places
}

struct Picker<'a> {
    backlog: &'a Backlog,
    now: Instant,
    limit: usize,
    /// Tokens up to which a run has little to do; 0 where batches are as long as they may be.
    light: usize,
    /// Whether work of such a run was taken.
    holds_light: bool,
    tokens: usize,
    /// Tokens that were computed before their turn.
    out_of_turn: usize,
    seen: HashSet<WorkPlace>,
    selection: Selection,
}

impl Picker<'_> {
    fn is_full(&self) -> bool {
        self.tokens >= self.limit
    }

    fn fits(&self, cost: usize) -> bool {
        self.selection.places.is_empty() || self.tokens + cost <= self.limit
    }

    /// Takes a piece of work if it fits and is wanted; answers its tokens, 0 where it was dealt with
    /// before, `None` where it does not fit.
    fn take(&mut self, place: WorkPlace) -> Option<usize> {
        if self.seen.contains(&place) {
            return Some(0);
        }
        let Some(work) = self.backlog.get(place) else { return Some(0) };
        if !work.is_wanted(self.now) {
            self.seen.insert(place);
            self.selection.unwanted.push(place);
            return Some(0);
        }
        let cost = work.cost();
        if !self.fits(cost) {
            return None;
        }
        self.seen.insert(place);
        self.tokens += cost;
        self.selection.places.push(place);
        Some(cost)
    }

    fn in_turn(&mut self, urgent: &[WorkPlace], everything: bool) {
        let backlog = self.backlog;
        let mut lanes: Vec<_> = backlog
            .active_lanes(self.now)
            .filter(|(_, lane)| !lane.waiting.is_empty())
            .map(|(number, lane)| {
                let first = urgent.iter().filter(move |place| place.lane == number);
                let ages =
                    lane.waiting.keys().map(move |&age| WorkPlace { lane: number, number: age });
                (lane, first.copied().chain(ages))
            })
            .collect();
        let mut order: BinaryHeap<_> = lanes
            .iter()
            .enumerate()
            .map(|(index, (lane, _))| Reverse((lane.served, index)))
            .collect();
        while let Some(Reverse((served, index))) = order.pop() {
            let (lane, places) = &mut lanes[index];
            let Some(place) = places.next() else { continue };
            if self.seen.contains(&place) {
                order.push(Reverse((served, index)));
                continue;
            }
            let is_light = lane.tokens <= self.light;
            if self.holds_light && !is_light && !everything && self.tokens >= self.limit / FILLED {
                return;
            }
            // A run whose next work does not fit has had its turn.
            let cost = if everything { self.take(place) } else { self.take_family(place, lane) };
            if let Some(cost) = cost {
                self.holds_light |= is_light && cost > 0;
                order.push(Reverse((served + cost as u64, index)));
            }
            if self.is_full() {
                return;
            }
        }
    }

    /// Takes a piece of work with those that begin as it does. A family that would fit into a batch of
    /// its own is not torn once this batch is half full.
    fn take_family(&mut self, head: WorkPlace, lane: &Lane) -> Option<usize> {
        let Some(work) = self.backlog.get(head) else { return Some(0) };
        let enough = self.out_of_turn >= self.limit / 2;
        if enough || !work.is_wanted(self.now) || work.known.is_some() {
            return self.take(head);
        }
        let family = self.family(head, lane);
        let tokens = work.cost() + family.iter().map(|(_, cost, _)| cost).sum::<usize>();
        if self.tokens > self.limit / 2 && tokens <= self.limit && !self.fits(tokens) {
            return None;
        }
        let mut taken = self.take(head)?;
        for (place, _, own) in family {
            // Half of a batch goes in turn whatever the texts have in common, so that nobody waits much
            // longer than by age: all texts may begin with one long system prompt.
            if self.out_of_turn + own > self.limit / 2 {
                break;
            }
            match self.take(place) {
                Some(cost) => {
                    taken += cost;
                    self.out_of_turn += own;
                }
                None => break,
            }
        }
        Some(taken)
    }

    /// Work of the lane that begins as `head` does, most in common first, with its tokens and those that
    /// are not in common; no more than a batch holds.
    fn family(&self, head: WorkPlace, lane: &Lane) -> Vec<(WorkPlace, usize, usize)> {
        let mut family = Vec::new();
        let Some(entry) = lane.waiting.get(&head.number) else { return family };
        let ids = &entry.work.ids;
        let common = |other: &[u32]| {
            let count = ids.iter().zip(other).take_while(|(a, b)| a == b).count();
            let enough = count >= MIN_SHARED && count * SHARED_PART >= other.len().min(ids.len());
            enough.then_some(count)
        };
        let key = (ids.clone(), head.number);
        let mut before = lane.sorted.range(..key.clone()).rev();
        let mut after = lane.sorted.range(key..).skip(1);
        let next = |other: Option<&(std::sync::Arc<[u32]>, u64)>| {
            other.and_then(|(ids, number)| Some((common(ids)?, ids.len(), *number)))
        };
        let mut left = next(before.next());
        let mut right = next(after.next());
        let mut tokens = ids.len();
        while tokens <= self.limit {
            let from_left = match (&left, &right) {
                (Some(l), Some(r)) => l.0 > r.0,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let side = if from_left { &mut left } else { &mut right };
            let Some((shared, length, number)) = side.take() else { break };
            tokens += length;
            let place = WorkPlace { lane: head.lane, number };
            if !self.seen.contains(&place) {
                family.push((place, length, length - shared));
            }
            *side = if from_left { next(before.next()) } else { next(after.next()) };
        }
        // In turn among those with as much in common.
        family.sort_by_key(|&(place, length, own)| (Reverse(length - own), place));
        family
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot::{self, Receiver};

    use super::*;
    use crate::engine::job::{JobError, JobScore};
    use crate::engine::work::{Waiter, Work};

    type Answer = Receiver<Result<JobScore, JobError>>;

    struct BacklogBench {
        backlog: Backlog,
        start: Instant,
        answers: Vec<Answer>,
    }

    impl BacklogBench {
        fn new() -> Self {
            Self { backlog: Backlog::default(), start: Instant::now(), answers: Vec::new() }
        }

        /// Work of `prompt.1` tokens `prompt.0`, and `own.1` tokens `own.0`.
        fn push(&mut self, run: &str, prompt: (u32, usize), own: (u32, usize), seconds: u64) {
            let mut ids = vec![prompt.0; prompt.1];
            ids.extend(vec![own.0; own.1]);
            let (answer, receiver) = oneshot::channel();
            self.answers.push(receiver);
            let deadline = self.start + Duration::from_secs(seconds);
            let waiter = Waiter { since: self.start, deadline, answer };
            let work = Arc::new(Work::new(ids.into(), 0, None, None, waiter));
            self.backlog.push(run, work, deadline, self.start);
        }

        fn batch(&mut self, bounds: Bounds, pace: Pace) -> Vec<Arc<Work>> {
            let selection = select(&self.backlog, bounds, pace, 0, self.start);
            selection.unwanted.iter().for_each(|&place| drop(self.backlog.remove(place)));
            let places = selection.places.into_iter();
            places.map(|place| self.backlog.serve(place).unwrap()).collect()
        }
    }

    fn bounds(budget: usize) -> Bounds {
        Bounds { budget, turn: budget }
    }

    fn last(batch: &[Arc<Work>]) -> Vec<u32> {
        batch.iter().map(|work| *work.ids.last().unwrap()).collect()
    }

    #[test]
    fn a_run_with_little_to_do_does_not_wait_for_the_work_of_others() {
        let mut bench = BacklogBench::new();
        for text in 0..40 {
            bench.push("flood", (7, 1), (100 + text, 19), 60);
        }
        let bounds = Bounds { budget: 400, turn: 200 };
        let served = |batch: &[Arc<Work>]| batch.iter().map(|work| work.cost()).sum::<usize>();
        assert_eq!(served(&bench.batch(bounds, Pace::default())), 400);
        bench.push("polite", (8, 1), (1, 59), 60);
        // Once a quarter of the short batch is full, and theirs is in it, it goes.
        let batch = bench.batch(bounds, Pace::default());
        assert!(last(&batch).contains(&1), "{:?}", last(&batch));
        assert!(served(&batch) <= 60 + 50, "{}", served(&batch));
        assert_eq!(served(&bench.batch(bounds, Pace::default())), 200);
    }

    #[test]
    fn runs_are_served_the_same_tokens_however_much_they_ask() {
        let mut bench = BacklogBench::new();
        for number in 0..100 {
            bench.push("flood", (1000 + number, 1), (1, 9), 100);
        }
        for number in 0..5 {
            bench.push("polite", (2000 + number, 1), (2, 9), 100);
        }
        let batch = bench.batch(bounds(60), Pace::default());
        let count = |batch: &[Arc<Work>], run| last(batch).iter().filter(|r| **r == run).count();
        assert_eq!((count(&batch, 1), count(&batch, 2)), (3, 3));
        let batch = bench.batch(bounds(60), Pace::default());
        assert_eq!((count(&batch, 1), count(&batch, 2)), (4, 2));
        // What a run did not ask for in the meantime it has not saved.
        for _ in 0..5 {
            assert_eq!(count(&bench.batch(bounds(60), Pace::default()), 1), 6);
        }
        for number in 0..50 {
            bench.push("polite", (3000 + number, 1), (2, 9), 100);
        }
        let batch = bench.batch(bounds(60), Pace::default());
        assert_eq!((count(&batch, 1), count(&batch, 2)), (3, 3));
    }

    #[test]
    fn work_that_would_miss_its_deadline_goes_first() {
        let mut pace = Pace::default();
        pace.record(100, Duration::from_secs(1));
        let mut bench = BacklogBench::new();
        for number in 0..50 {
            bench.push("a", (number, 1), (1, 19), 100);
        }
        bench.push("a", (98, 1), (7, 19), 2);
        bench.push("b", (99, 1), (8, 19), 2);
        assert_eq!(&last(&bench.batch(bounds(100), pace))[..2], [7, 8]);
        // Nothing is at risk now: in turn.
        assert_eq!(last(&bench.batch(bounds(100), pace)), [1; 5]);
    }

    #[test]
    fn a_run_does_not_buy_the_share_of_another_with_its_deadlines() {
        let mut pace = Pace::default();
        pace.record(100, Duration::from_secs(1));
        let mut bench = BacklogBench::new();
        for number in 0..50 {
            bench.push("flood", (number, 1), (1, 19), 5);
        }
        bench.push("polite", (99, 1), (8, 39), 100);
        assert_eq!(last(&bench.batch(bounds(100), pace)), [1, 8, 1, 1]);
    }

    #[test]
    fn work_that_is_late_whatever_goes_first_holds_nobody_up() {
        let mut pace = Pace::default();
        pace.record(100, Duration::from_secs(10));
        let mut bench = BacklogBench::new();
        for number in 0..50 {
            bench.push("a", (number, 1), (1, 19), 10_000);
        }
        bench.push("a", (99, 1), (9, 19), 1);
        assert_eq!(last(&bench.batch(bounds(100), pace)), [1; 5]);
    }

    #[test]
    fn answers_to_one_prompt_go_together_whenever_they_came() {
        let mut bench = BacklogBench::new();
        for answer in 0..4 {
            for prompt in 1..=8 {
                bench.push("a", (prompt, 50), (100 * prompt + answer, 10), 100);
            }
        }
        for round in 0..4 {
            let batch = bench.batch(bounds(480), Pace::default());
            let mut prompts: Vec<u32> = batch.iter().map(|work| work.ids[0]).collect();
            prompts.sort_unstable();
            let (first, second) = (2 * round + 1, 2 * round + 2);
            assert_eq!(prompts, [first, first, first, first, second, second, second, second]);
        }
        assert!(bench.backlog.is_empty());
    }

    #[test]
    fn a_family_that_fits_into_the_next_batch_is_not_torn() {
        let mut bench = BacklogBench::new();
        for prompt in 1..=2 {
            for answer in 0..3 {
                bench.push("a", (prompt, 50), (100 * prompt + answer, 10), 100);
            }
        }
        assert_eq!(bench.batch(bounds(300), Pace::default()).len(), 3);
        assert_eq!(bench.batch(bounds(300), Pace::default()).len(), 3);
        // One that fits into none is.
        for answer in 0..8 {
            bench.push("a", (3, 50), (300 + answer, 10), 100);
        }
        assert_eq!(bench.batch(bounds(300), Pace::default()).len(), 5);
    }

    #[test]
    fn a_prompt_that_all_have_in_common_does_not_undo_the_order() {
        let mut bench = BacklogBench::new();
        // The oldest sort last: relatives alone would leave them to the end.
        for number in (0..100).rev() {
            bench.push("a", (1, 20), (1000 + number, 20), 100);
        }
        let batch = last(&bench.batch(bounds(400), Pace::default()));
        assert_eq!(batch[0], 1099);
        let in_turn = batch.iter().filter(|&&number| number >= 1090).count();
        assert!(in_turn >= 5, "{batch:?}");
    }

    #[test]
    fn who_left_is_left_out_and_one_too_long_goes_alone() {
        let mut bench = BacklogBench::new();
        bench.push("a", (1, 1), (1, 9), 100);
        bench.push("a", (2, 1), (2, 999), 100);
        bench.push("a", (3, 1), (3, 9), 100);
        bench.answers.remove(0);
        assert_eq!(last(&bench.batch(bounds(100), Pace::default())), [2]);
        assert_eq!(last(&bench.batch(bounds(100), Pace::default())), [3]);
        assert!(bench.backlog.is_empty());
        assert_eq!(bench.backlog.tokens(), 0);
    }

    #[test]
    fn batches_are_short_while_a_run_with_little_to_do_is_active() {
        let bounds = Bounds { budget: 1000, turn: 100 };
        let mut bench = BacklogBench::new();
        for number in 0..100 {
            bench.push("flood", (1000 + number, 1), (1, 19), 100);
        }
        assert_eq!(bench.batch(bounds, Pace::default()).len(), 50);
        bench.push("polite", (1, 1), (2, 9), 100);
        let batch = last(&bench.batch(bounds, Pace::default()));
        assert_eq!(batch.iter().filter(|run| **run == 2).count(), 1);
        assert!(batch.len() <= 6, "{batch:?}");
        // Its next request may come at any time.
        assert_eq!(bench.batch(bounds, Pace::default()).len(), 5);
    }
}
