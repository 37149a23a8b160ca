//! The engine over a device that the tests control: what is computed, for whom, and in which batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inform::checkpoint::Checkpoint;
use inform::engine::{
    CacheConfig, Engine, EngineConfig, EngineError, Job, JobError, JobScore, ScoreCache,
};
use inform::metrics::Metrics;
use inform::model::{Latent, RewardModel, Score, ScoreError, Scorer};
use inform::monitor::{Monitor, MonitorConfig, Role, SampleOrigin, Subject};
use inform::ops::Packing;
use inform::ops::cpu::{CpuOps, Precision};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);
/// Scoring it panics.
const POISON: u32 = 666;
/// Its score is not a number.
const STRANGE: u32 = 667;

/// What the tests see of the device, and how they hold it.
#[derive(Default)]
struct Control {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    /// Sequences of each batch that was begun.
    batches: VecDeque<Vec<Vec<u32>>>,
    is_held: bool,
    /// Time that a token takes.
    pace: Duration,
}

/// A device whose rewards are simple functions of the tokens.
struct Device(Arc<Control>);

fn sequences(packing: &Packing) -> Vec<Vec<u32>> {
    let ends = packing.last_segments().zip(packing.last_rows());
    ends.map(|(segment, last)| {
        let rows = packing.rows_through(segment).into_iter();
        rows.take_while(|&row| row <= last).map(|row| packing.ids()[row]).collect()
    })
    .collect()
}

fn reward(ids: &[u32]) -> f32 {
    ids.iter().enumerate().map(|(place, id)| (place as f32 + 0.5) * *id as f32).sum()
}

impl Scorer for Device {
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        let sequences = sequences(packing);
        let mut state = self.0.state.lock();
        state.batches.push_back(sequences.clone());
        self.0.changed.notify_all();
        self.0.changed.wait_while(&mut state, |state| state.is_held);
        let pace = state.pace;
        drop(state);
        std::thread::sleep(pace * packing.rows() as u32);
        assert!(!packing.ids().contains(&POISON), "a kernel failed");
        let score = |ids: &Vec<u32>| Score {
            reward: if ids.contains(&STRANGE) { f32::NAN } else { reward(ids) },
            latent: Some(Latent { mean: vec![reward(ids), 1.0], sigma: vec![1.0, 2.0] }),
            ..Score::default()
        };
        Ok(sequences.iter().map(score).collect())
    }

    fn reward_spread(&self, score: &Score, draws: usize) -> Result<Option<f32>, ScoreError> {
        Ok(score.latent.as_ref().map(|latent| latent.mean[0] / draws as f32))
    }
}

struct Bench {
    engine: Arc<Engine>,
    control: Arc<Control>,
    metrics: Metrics,
    monitor: Monitor,
    runtime: Runtime,
}

type Task = JoinHandle<Result<Vec<Result<JobScore, JobError>>, EngineError>>;

fn config() -> EngineConfig {
    EngineConfig { token_budget: 100, turn_tokens: 100, ..EngineConfig::default() }
}

impl Bench {
    fn start(config: &EngineConfig, cache_bytes: u64) -> Self {
        let control = Arc::new(Control::default());
        let metrics = Metrics::new().unwrap();
        let monitor = Monitor::start(MonitorConfig::default(), None, "", metrics.clone()).unwrap();
        let cache = ScoreCache::new("w", &CacheConfig { max_bytes: cache_bytes }, &metrics);
        let device = Box::new(Device(control.clone()));
        let engine =
            Engine::start(vec![device], config, cache, Some(monitor.clone()), metrics.clone())
                .unwrap();
        let runtime = Runtime::new().unwrap();
        Self { engine: Arc::new(engine), control, metrics, monitor, runtime }
    }

    fn hold(&self) {
        self.control.state.lock().is_held = true;
    }

    fn release(&self) {
        self.control.state.lock().is_held = false;
        self.control.changed.notify_all();
    }

    /// The next batch that the device began.
    fn batch(&self) -> Vec<Vec<u32>> {
        let mut state = self.control.state.lock();
        while state.batches.is_empty() {
            let timed_out = self.control.changed.wait_for(&mut state, PATIENCE).timed_out();
            assert!(!timed_out, "no batch came");
        }
        state.batches.pop_front().unwrap()
    }

    /// The sequences of all batches since the last call.
    fn computed(&self) -> Vec<Vec<u32>> {
        self.control.state.lock().batches.drain(..).flatten().collect()
    }

    /// Begins to score, and waits until the engine has the jobs.
    fn send_within(&self, run: &str, jobs: Vec<Job>, time: Duration) -> Task {
        let before = self.tokens("logical");
        let sum = jobs.iter().map(|job| job.ids.len() as u64).sum::<u64>();
        let (engine, origin) = (self.engine.clone(), origin(run));
        let deadline = Instant::now() + time;
        let task = self.runtime.spawn(async move { engine.score(jobs, deadline, &origin).await });
        self.until(|| task.is_finished() || self.tokens("logical") >= before + sum);
        task
    }

    fn send(&self, run: &str, jobs: Vec<Job>) -> Task {
        self.send_within(run, jobs, PATIENCE)
    }

    fn answers(&self, task: Task) -> Result<Vec<Result<JobScore, JobError>>, EngineError> {
        self.runtime.block_on(task).unwrap()
    }

    fn score(&self, jobs: Vec<Job>) -> Vec<Result<JobScore, JobError>> {
        self.answers(self.send("run", jobs)).unwrap()
    }

    fn one(&self, job: Job) -> JobScore {
        self.score(vec![job]).pop().unwrap().unwrap()
    }

    fn tokens(&self, kind: &str) -> u64 {
        self.metrics.tokens.with_label_values(&[kind]).get()
    }

    fn until(&self, done: impl Fn() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.release();
    }
}

fn origin(run: &str) -> SampleOrigin {
    SampleOrigin { run: run.to_owned(), step: None, role: Role::Policy, request: "test".into() }
}

fn job(ids: impl Into<Vec<u32>>) -> Job {
    Job { ids: ids.into(), draws: 0, cache: true, index: 0, subject: Subject::default() }
}

/// Ten tokens that no other number has.
fn text(number: u32) -> Vec<u32> {
    (0..10).map(|place| 1000 + 10 * number + place).collect()
}

fn same_bits(one: &JobScore, other: &JobScore) -> bool {
    let bits = |scored: &JobScore| {
        let latent = scored.score.latent.clone().unwrap();
        let values = [vec![scored.score.reward], latent.mean, latent.sigma].concat();
        values.into_iter().chain(scored.reward_std).map(f32::to_bits).collect::<Vec<_>>()
    };
    bits(one) == bits(other)
}

#[test]
fn a_hundred_identical_requests_compute_once() {
    let bench = Bench::start(&config(), 1 << 20);
    bench.hold();
    let blocker = bench.send("run", vec![job([1])]);
    bench.batch();
    // Before the device begins, and while it works.
    let mut tasks: Vec<Task> = (0..50)
        .map(|number| bench.send(&format!("run {}", number % 3), vec![job([7, 8, 9])]))
        .collect();
    bench.release();
    bench.answers(blocker).unwrap();
    bench.hold();
    tasks.extend((0..50).map(|_| bench.send("run", vec![job([7, 8, 9])])));
    bench.release();
    let answers: Vec<JobScore> =
        tasks.into_iter().map(|task| bench.answers(task).unwrap()[0].clone().unwrap()).collect();
    assert_eq!(bench.computed(), [[7, 8, 9]]);
    assert!(answers.iter().all(|answer| same_bits(answer, &answers[0])));
    assert_eq!(answers[0].score.reward, reward(&[7, 8, 9]));
    assert_eq!((bench.tokens("computed"), bench.tokens("logical")), (4, 301));
    assert_eq!(bench.tokens("merged") + bench.tokens("cached"), 297);
    assert_eq!(bench.metrics.cache_merged.get() + bench.metrics.cache_hits.get(), 99);
    assert_eq!(bench.metrics.cache_misses.get(), 2);
}

#[test]
fn without_a_cache_identical_work_under_way_is_still_computed_once() {
    let bench = Bench::start(&config(), 0);
    bench.hold();
    let tasks: Vec<Task> = (0..20).map(|_| bench.send("run", vec![job([7, 8, 9])])).collect();
    bench.release();
    tasks.into_iter().for_each(|task| drop(bench.answers(task).unwrap()));
    assert_eq!(bench.computed(), [[7, 8, 9]]);
    // Later nothing is known any more.
    assert!(!bench.one(job([7, 8, 9])).cached);
    assert_eq!(bench.computed(), [[7, 8, 9]]);
    assert_eq!((bench.metrics.cache_hits.get(), bench.metrics.cache_misses.get()), (0, 0));
}

#[test]
fn a_client_that_leaves_does_not_take_the_work_of_others_along() {
    let bench = Bench::start(&config(), 1 << 20);
    bench.hold();
    let blocker = bench.send("run", vec![job([1])]);
    bench.batch();
    let first = bench.send("run", vec![job([5, 6])]);
    let second = bench.send("run", vec![job([5, 6])]);
    let alone = bench.send("run", vec![job([3, 4])]);
    first.abort();
    alone.abort();
    bench.until(|| bench.metrics.queue_tokens.get() == 2);
    bench.release();
    bench.answers(blocker).unwrap();
    assert_eq!(bench.answers(second).unwrap()[0].as_ref().unwrap().score.reward, reward(&[5, 6]));
    assert_eq!(bench.computed(), [[5, 6]]);
}

#[test]
fn a_text_is_not_scored_twice_and_the_monitor_sees_it_twice() {
    let bench = Bench::start(&config(), 1 << 20);
    let texts: Vec<Job> = (0..50).map(|number| job(text(number))).collect();
    let first = bench.score(texts.clone());
    assert_eq!(bench.computed().len(), 50);
    let again = bench.score(texts);
    assert!(bench.computed().is_empty());
    for (first, again) in first.into_iter().zip(again) {
        let (first, again) = (first.unwrap(), again.unwrap());
        assert!(same_bits(&first, &again));
        assert!(!first.cached && again.cached);
        assert!(first.device > Duration::ZERO);
        assert_eq!((again.queue, again.device), (Duration::ZERO, Duration::ZERO));
    }
    assert_eq!((bench.tokens("computed"), bench.tokens("cached")), (500, 500));
    assert_eq!(bench.metrics.cache_entries.get(), 50);
    bench.monitor.stop();
    let seen = bench.monitor.run("run").unwrap();
    assert_eq!(serde_json::to_value(seen).unwrap()["samples"], 100);
}

#[test]
fn draws_are_part_of_what_is_known() {
    let bench = Bench::start(&config(), 1 << 20);
    let with = |draws| Job { draws, ..job([7, 8, 9]) };
    let none = bench.one(with(0));
    assert_eq!((none.reward_std, bench.computed().len()), (None, 1));
    // The score is known, its spread is not: that needs no forward pass.
    let two = bench.one(with(2));
    assert_eq!(two.reward_std, Some(reward(&[7, 8, 9]) / 2.0));
    assert_eq!(bench.one(with(4)).reward_std, Some(reward(&[7, 8, 9]) / 4.0));
    let again = bench.one(with(2));
    assert!(again.cached && same_bits(&again, &two));
    assert!(bench.computed().is_empty());
    // The other way round: a fresh text with draws is known without them too.
    bench.one(Job { draws: 3, ..job([4, 4]) });
    assert_eq!(bench.computed().len(), 1);
    let plain = bench.one(job([4, 4]));
    assert!(plain.cached && plain.reward_std.is_none());
    assert!(bench.computed().is_empty());
}

#[test]
fn who_wants_no_cache_neither_reads_nor_fills_it_nor_joins_others() {
    let bench = Bench::start(&config(), 1 << 20);
    let fresh = || Job { cache: false, ..job([7, 8, 9]) };
    bench.one(fresh());
    assert!(!bench.one(job([7, 8, 9])).cached, "it was filled");
    assert!(!bench.one(fresh()).cached, "it was read");
    assert_eq!(bench.computed().len(), 3);
    bench.hold();
    let blocker = bench.send("run", vec![job([1])]);
    bench.batch();
    let tasks: Vec<Task> = (0..3).map(|_| bench.send("run", vec![fresh()])).collect();
    bench.release();
    bench.answers(blocker).unwrap();
    tasks.into_iter().for_each(|task| drop(bench.answers(task).unwrap()));
    assert_eq!(bench.computed().len(), 3);
    assert_eq!(bench.metrics.cache_merged.get(), 0);
}

#[test]
fn the_cache_keeps_to_its_bytes_and_forgets_what_was_used_least_recently() {
    let bench = Bench::start(&config(), 20_000);
    bench.one(job(text(0)));
    for number in 1..200 {
        bench.one(job(text(number)));
        assert!(bench.one(job(text(0))).cached, "after {number}");
    }
    let bytes = bench.metrics.cache_bytes.get();
    assert!(bytes > 10_000 && bytes <= 20_000, "{bytes}");
    assert!(bench.one(job(text(199))).cached);
    assert!(!bench.one(job(text(1))).cached);
}

#[test]
fn failures_are_not_kept_and_reach_all_who_wait() {
    let bench = Bench::start(&config(), 1 << 20);
    for (token, error) in
        [(POISON, JobError::Device("a kernel failed".to_owned())), (STRANGE, JobError::NonFinite)]
    {
        bench.hold();
        let tasks: Vec<Task> = (0..3).map(|_| bench.send("run", vec![job([token, 1])])).collect();
        bench.release();
        for task in tasks {
            assert_eq!(bench.answers(task).unwrap(), [Err(error.clone())]);
        }
        assert_eq!(bench.score(vec![job([token, 1])]), [Err(error)]);
        assert_eq!(bench.computed().len(), 2);
    }
}

/// The real model behind a kernel that panics on one token.
struct Faulty(RewardModel<CpuOps>);

impl Scorer for Faulty {
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        assert!(!packing.ids().contains(&POISON), "a kernel failed");
        self.0.score_packed(packing)
    }

    fn reward_spread(&self, score: &Score, draws: usize) -> Result<Option<f32>, ScoreError> {
        self.0.reward_spread(score, draws)
    }
}

#[test]
fn a_panic_in_a_kernel_fails_its_text_alone_and_the_device_lives() {
    let checkpoint = Checkpoint::open("configs/demo".as_ref()).unwrap();
    let device = CpuOps::new(2, Precision::F32).unwrap();
    let model = RewardModel::load(device, &checkpoint.config, &checkpoint.tensors).unwrap();
    let text = |number: u32| -> Vec<u32> { (0..20).map(|place| 700 + number + place).collect() };
    let alone: Vec<Score> =
        (0..30).map(|number| model.score(&[&text(number)]).unwrap().pop().unwrap()).collect();
    let metrics = Metrics::new().unwrap();
    let cache = ScoreCache::new("w", &CacheConfig { max_bytes: 0 }, &metrics);
    let config = EngineConfig::default();
    let engine =
        Engine::start(vec![Box::new(Faulty(model))], &config, cache, None, metrics).unwrap();
    let runtime = Runtime::new().unwrap();
    for _ in 0..3 {
        let jobs = (0..30).map(|number| {
            let mut ids = text(number);
            if number % 7 == 3 {
                ids[10] = POISON;
            }
            job(ids)
        });
        let deadline = Instant::now() + PATIENCE;
        let answers =
            runtime.block_on(engine.score(jobs.collect(), deadline, &origin("run"))).unwrap();
        for (number, answer) in answers.into_iter().enumerate() {
            if number % 7 == 3 {
                assert_eq!(answer, Err(JobError::Device("a kernel failed".to_owned())));
            } else {
                let (score, alone) = (answer.unwrap().score, &alone[number]);
                assert_eq!(score.reward.to_bits(), alone.reward.to_bits());
                assert_eq!(score.latent, alone.latent);
            }
        }
    }
    assert!(engine.is_accepting());
}

#[test]
fn clients_that_left_are_dropped_even_from_a_batch_that_is_planned() {
    let bench = Bench::start(&config(), 0);
    bench.hold();
    let blocker = bench.send("run", vec![job([1])]);
    bench.batch();
    // More than two batches: the next one is planned while the device is held.
    let tasks: Vec<Task> = (0..25).map(|n| bench.send("run", vec![job(text(n))])).collect();
    std::thread::sleep(Duration::from_millis(100));
    for number in [0, 3, 15] {
        tasks[number].abort();
    }
    bench.until(|| bench.metrics.queue_tokens.get() == 220);
    bench.release();
    bench.answers(blocker).unwrap();
    for (number, task) in tasks.into_iter().enumerate() {
        if ![0, 3, 15].contains(&number) {
            bench.answers(task).unwrap();
        }
    }
    let computed = bench.computed();
    assert_eq!(computed.len(), 22);
    for number in [0, 3, 15] {
        assert!(!computed.contains(&text(number)));
    }
}

#[test]
fn what_comes_while_the_device_works_joins_the_next_batch() {
    let bench = Bench::start(&config(), 0);
    bench.hold();
    let mut tasks = vec![bench.send("run", vec![job(text(0))])];
    bench.batch();
    for number in 1..=8 {
        tasks.push(bench.send("run", vec![job(text(number))]));
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.release();
    let batch = bench.batch();
    assert_eq!(batch, (1..=8).map(text).collect::<Vec<_>>());
    tasks.into_iter().for_each(|task| drop(bench.answers(task).unwrap()));
}

#[test]
fn a_flooding_run_does_not_hold_up_a_polite_one() {
    let bench = Bench::start(&config(), 0);
    bench.hold();
    let flood = bench.send("flood", (0..500).map(|number| job(text(number))).collect());
    bench.batch();
    // The next batch is planned and full; it must give way.
    std::thread::sleep(Duration::from_millis(100));
    let polite = bench.send("polite", (1000..1003).map(|number| job(text(number))).collect());
    bench.release();
    let batch = bench.batch();
    assert!((1000..1003).all(|number| batch.contains(&text(number))), "{batch:?}");
    // The batch is filled with the flood's work.
    assert_eq!(batch.len(), 10);
    assert!(bench.answers(polite).unwrap().iter().all(Result::is_ok));
    assert!(bench.answers(flood).unwrap().iter().all(Result::is_ok));
}

#[test]
fn work_is_refused_that_cannot_be_done_in_time() {
    let bench = Bench::start(&config(), 0);
    bench.control.state.lock().pace = Duration::from_millis(1);
    bench.score((0..20).map(|number| job(text(number))).collect());
    bench.computed();
    bench.hold();
    let accepted = bench.send("run", (100..200).map(|number| job(text(number))).collect());
    bench.batch();
    // A second of work is ahead.
    let late = bench.send_within("run", vec![job(text(300))], Duration::from_millis(500));
    let refused = bench.answers(late);
    assert!(matches!(refused, Err(EngineError::Overloaded { .. })), "{refused:?}");
    let deadline = |time| Instant::now() + time;
    let early = bench.engine.check_room(Some("run"), 1, deadline(Duration::from_millis(500)));
    assert!(matches!(early, Err(EngineError::Overloaded { .. })), "{early:?}");
    // There is time for a request with a later deadline, and for another run's.
    bench.engine.check_room(Some("run"), 1, deadline(PATIENCE)).unwrap();
    let patient = bench.send("run", vec![job(text(301))]);
    let other = bench.send_within("other", vec![job(text(302))], PATIENCE);
    bench.release();
    for task in [accepted, patient, other] {
        assert!(bench.answers(task).unwrap().iter().all(Result::is_ok));
    }
}

#[test]
fn a_full_queue_lets_a_run_in_that_has_nothing_in_it() {
    let config = EngineConfig { queue_tokens: 200, ..config() };
    let bench = Bench::start(&config, 0);
    bench.hold();
    let blocker = bench.send("flood", vec![job(text(0))]);
    bench.batch();
    let mut accepted = vec![bench.send("flood", (1..21).map(|n| job(text(n))).collect())];
    let refused = bench.answers(bench.send("flood", vec![job(text(21))]));
    assert!(matches!(refused, Err(EngineError::QueueFull { waiting: 200, .. })), "{refused:?}");
    let room = |run| bench.engine.check_room(run, 1, Instant::now() + PATIENCE);
    assert!(matches!(room(Some("flood")), Err(EngineError::QueueFull { .. })));
    // A request whose run is not known yet must be read.
    room(Some("polite")).unwrap();
    room(None).unwrap();
    for run in 0..20 {
        accepted.push(bench.send(&format!("run {run}"), vec![job(text(30 + run))]));
    }
    // Whoever invents runs fills the queue twice, not without end.
    let refused = bench.answers(bench.send("another", vec![job(text(60))]));
    assert!(matches!(refused, Err(EngineError::QueueFull { waiting: 400, .. })), "{refused:?}");
    assert!(room(None).is_err());
    bench.release();
    bench.answers(blocker).unwrap();
    for task in accepted {
        assert!(bench.answers(task).unwrap().iter().all(Result::is_ok));
    }
}

#[test]
fn one_slow_batch_does_not_make_the_engine_refuse_what_fits_into_the_next() {
    let bench = Bench::start(&config(), 0);
    bench.control.state.lock().pace = Duration::from_millis(20);
    bench.one(job(text(0)));
    bench.computed();
    bench.control.state.lock().pace = Duration::ZERO;
    bench.hold();
    let blocker = bench.send("run", vec![job(text(0))]);
    bench.batch();
    // By that batch's pace these would take more than two seconds.
    let within = Duration::from_secs(1);
    for number in 0..10 {
        bench.engine.check_room(Some("run"), 1, Instant::now() + within).unwrap();
        bench.send("run", vec![job(text(number + 1))]);
    }
    assert_eq!(bench.metrics.queue_tokens.get(), 100);
    let late = bench.send_within("run", vec![job(text(20))], within);
    assert!(matches!(bench.answers(late), Err(EngineError::Overloaded { .. })));
    bench.release();
    bench.answers(blocker).unwrap();
}

#[test]
fn what_is_past_its_deadline_is_not_computed() {
    let bench = Bench::start(&config(), 0);
    bench.hold();
    let blocker = bench.send("run", vec![job([1])]);
    bench.batch();
    let late = bench.send_within("run", vec![job(text(0))], Duration::from_millis(20));
    assert_eq!(bench.answers(late), Err(EngineError::DeadlineExceeded));
    assert_eq!(bench.metrics.queue_tokens.get(), 0);
    bench.release();
    bench.answers(blocker).unwrap();
    bench.one(job(text(1)));
    assert_eq!(bench.computed(), [text(1)]);
}

#[test]
fn shutting_down_finishes_what_was_admitted_and_planned() {
    let bench = Bench::start(&config(), 0);
    bench.hold();
    let tasks: Vec<Task> = (0..60).map(|n| bench.send("run", vec![job(text(n))])).collect();
    let engine = bench.engine.clone();
    let joined = std::thread::spawn(move || engine.join());
    bench.until(|| !bench.engine.is_accepting());
    let refused = bench.answers(bench.send("run", vec![job(text(99))]));
    assert_eq!(refused, Err(EngineError::Draining));
    bench.release();
    for task in tasks {
        assert!(bench.answers(task).unwrap()[0].is_ok());
    }
    joined.join().unwrap();
}
