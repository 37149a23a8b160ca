//! What no public door can make happen: a planner that fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::backlog::Backlog;
use super::plan::{self, Bounds, Pace, Policy, Selection};
use super::{CacheConfig, Engine, EngineConfig, Job, ScoreCache};
use crate::metrics::Metrics;
use crate::model::{Score, ScoreError, Scorer};
use crate::monitor::{Role, SampleOrigin, Subject};
use crate::ops::Packing;

/// Planning fails while it waits.
const POISON: u32 = 666;

/// Each reward is its text's last token; keeps the rewards of each batch.
struct LastTokenScorer(Arc<Mutex<Vec<Vec<f32>>>>);

impl Scorer for LastTokenScorer {
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        let rewards: Vec<f32> =
            packing.last_rows().into_iter().map(|row| packing.ids()[row] as f32).collect();
        self.0.lock().push(rewards.clone());
        Ok(rewards.into_iter().map(|reward| Score { reward, ..Score::default() }).collect())
    }

    fn reward_spread(&self, _: &Score, _: usize) -> Result<Option<f32>, ScoreError> {
        Ok(None)
    }
}

struct EngineBench {
    engine: Engine,
    batches: Arc<Mutex<Vec<Vec<f32>>>>,
    runtime: Runtime,
}

impl EngineBench {
    fn start(policy: Policy, token_budget: usize) -> Self {
        let batches = Arc::default();
        let metrics = Metrics::new().unwrap();
        let cache = ScoreCache::new("w", &CacheConfig { max_bytes: 0 }, &metrics);
        let config = EngineConfig { token_budget, ..EngineConfig::default() };
        let devices: Vec<Box<dyn Scorer>> = vec![Box::new(LastTokenScorer(Arc::clone(&batches)))];
        let engine = Engine::start_with(policy, devices, &config, cache, None, metrics).unwrap();
        Self { engine, batches, runtime: Runtime::new().unwrap() }
    }

    /// Rewards of texts of two tokens, the second of which is given.
    fn rewards(&self, run: &str, tokens: &[u32]) -> Vec<f32> {
        self.runtime.block_on(self.score(run, tokens))
    }

    async fn score(&self, run: &str, tokens: &[u32]) -> Vec<f32> {
        let job = |(index, &token): (usize, &u32)| Job {
            ids: vec![1, token],
            draws: 0,
            cache: false,
            index,
            subject: Subject::default(),
        };
        let jobs = tokens.iter().enumerate().map(job).collect();
        let origin = SampleOrigin {
            run: run.to_owned(),
            step: None,
            role: Role::Policy,
            request: "r".into(),
        };
        let deadline = Instant::now() + Duration::from_secs(120);
        let answers = self.engine.score(jobs, deadline, &origin).await.unwrap();
        answers.into_iter().map(|answer| answer.unwrap().score.reward).collect()
    }
}

fn fails_at_poison(
    backlog: &Backlog,
    bounds: Bounds,
    pace: Pace,
    running: usize,
    now: Instant,
) -> Selection {
    let mut waiting = backlog.by_deadline().filter_map(|(_, place)| backlog.get(place));
    assert!(!waiting.any(|work| work.ids.contains(&POISON)), "planning failed");
    plan::select(backlog, bounds, pace, running, now)
}

fn fails_always(_: &Backlog, _: Bounds, _: Pace, _: usize, _: Instant) -> Selection {
    panic!("planning failed")
}

#[test]
fn a_panic_in_planning_costs_nobody_an_answer_and_the_threads_live() {
    let bench = EngineBench::start(fails_at_poison, 8);
    assert_eq!(bench.rewards("a", &[10, 11, 12]), [10.0, 11.0, 12.0]);
    for round in 0..3 {
        let poisoned: Vec<u32> =
            (0..20).map(|n| if n % 7 == 3 { POISON } else { 100 + n }).collect();
        let others: Vec<u32> = (0..20).map(|number| 200 + 20 * round + number).collect();
        let as_rewards = |tokens: &[u32]| tokens.iter().map(|&t| t as f32).collect::<Vec<_>>();
        let (a, b) = bench.runtime.block_on(async {
            tokio::join!(bench.score("a", &poisoned), bench.score("b", &others))
        });
        assert_eq!((a, b), (as_rewards(&poisoned), as_rewards(&others)));
    }
    bench.batches.lock().clear();
    assert_eq!(bench.rewards("a", &[20, 21]), [20.0, 21.0]);
    assert!(bench.engine.is_accepting());
    // Planned again, and not one by one.
    assert_eq!(*bench.batches.lock(), [[20.0, 21.0]]);
    bench.engine.join();
}

#[test]
fn without_any_plan_the_oldest_goes_first_and_alone() {
    let bench = EngineBench::start(fails_always, 4);
    assert_eq!(bench.rewards("a", &[5, 3, 9, 1, 7]), [5.0, 3.0, 9.0, 1.0, 7.0]);
    assert_eq!(*bench.batches.lock(), [[5.0], [3.0], [9.0], [1.0], [7.0]]);
    assert!(bench.engine.is_accepting());
    bench.engine.join();
}

/// Answers only while another device is at work too.
struct Paired(Arc<std::sync::Barrier>);

impl Scorer for Paired {
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        self.0.wait();
        Ok(vec![Score { reward: 1.0, ..Score::default() }; packing.sequences()])
    }

    fn reward_spread(&self, _: &Score, _: usize) -> Result<Option<f32>, ScoreError> {
        Ok(None)
    }
}

/// One request of two batches: each of two devices takes one, at the same time.
#[test]
fn several_devices_work_on_one_queue_at_once() {
    let metrics = Metrics::new().unwrap();
    let cache = ScoreCache::new("w", &CacheConfig { max_bytes: 0 }, &metrics);
    let config = EngineConfig { token_budget: 2, ..EngineConfig::default() };
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let devices: Vec<Box<dyn Scorer>> =
        vec![Box::new(Paired(barrier.clone())), Box::new(Paired(barrier))];
    let engine = Engine::start(devices, &config, cache, None, metrics).unwrap();
    let bench = EngineBench { engine, batches: Arc::default(), runtime: Runtime::new().unwrap() };
    assert_eq!(bench.rewards("a", &[2, 3, 4, 5]), [1.0; 4]);
    bench.engine.join();
}
