//! The monitor: the latents of each training run, watched for reward over-optimisation.
//!
//! The engine shows it every scored answer; a thread of its own sorts them into runs and windows and
//! evaluates each window. Scoring never waits for it.

pub mod alerts;
pub mod early_stop;
mod run;
pub mod statistics;
mod window;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use ndarray::Array2;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::checkpoint::Baseline;
use crate::metrics::Metrics;
use early_stop::EarlyStopParameters;
pub use run::{BaselineOrigin, Evaluation, RunView};
use run::{BaselineSet, Run};
pub use statistics::{csi, mahalanobis, neighbours};
use statistics::{csi::CsiParameters, mahalanobis::Mahalanobis};

/// Settings of the monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Samples of a window where the caller names no steps.
    pub window: usize,
    /// Fewest samples of a window that ends because a new step begins; fewer are carried over.
    pub min_window: usize,
    /// Most samples of a window, and of a recorded baseline.
    pub max_window: usize,
    /// Evaluations that each run keeps.
    pub history: usize,
    /// Runs that are kept; beyond that the one that was idle longest goes.
    pub max_runs: usize,
    /// Samples that may wait for the monitor; beyond that they are dropped and counted.
    pub max_pending: usize,
    /// DBSCAN and noise policy.
    pub csi: CsiParameters,
    /// When to say that training should stop.
    pub early_stop: EarlyStopParameters,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            window: 256,
            min_window: 32,
            max_window: 4096,
            history: 10_000,
            max_runs: 64,
            max_pending: 65_536,
            csi: CsiParameters::default(),
            early_stop: EarlyStopParameters::default(),
        }
    }
}

/// What an answer is to its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The trained policy's.
    #[default]
    Policy,
    /// The SFT model's: part of the run's baseline.
    Baseline,
    /// Of an evaluation, which is not monitored.
    Eval,
}

/// Where an answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The run; `default` where the caller names none.
    pub run: String,
    /// The training step, where the caller names one.
    pub step: Option<u64>,
    /// What the answer is.
    pub role: Role,
}

/// One scored answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Posterior mean `[d]`.
    pub latent: Vec<f32>,
    /// The reward.
    pub reward: f32,
    /// Length of the scored sequence, in tokens.
    pub tokens: usize,
}

/// The scored answers of one request.
#[derive(Debug, Clone)]
pub struct Observation {
    origin: Origin,
    samples: Vec<Sample>,
    at: Instant,
}

impl Observation {
    /// An observation made now.
    pub fn new(origin: Origin, samples: Vec<Sample>) -> Self {
        Self { origin, samples, at: Instant::now() }
    }
}

/// A monitor that cannot be started or asked.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// A setting is out of range.
    #[error("monitor.{setting}: {message}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The operating system refused the thread.
    #[error("the monitor's thread could not start: {0}")]
    Thread(#[from] std::io::Error),
    /// There is no such run.
    #[error("there is no run `{0}`; runs appear with their first scored answer")]
    UnknownRun(String),
    /// There is nothing to evaluate.
    #[error("the open window of run `{0}` is empty")]
    EmptyWindow(String),
}

enum Message {
    Observed(Observation),
    Evaluate(String, Sender<Result<Evaluation, MonitorError>>),
    Remove(String, Sender<Result<(), MonitorError>>),
    Stop,
}

/// Handle to the monitor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Monitor {
    messages: Sender<Message>,
    pending: Arc<AtomicUsize>,
    max_pending: usize,
    baseline: Option<Arc<BaselineSet>>,
    runs: Arc<RwLock<BTreeMap<String, Arc<Mutex<Run>>>>>,
    metrics: Metrics,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Monitor {
    /// Starts the monitor. `baseline` holds the checkpoint's SFT latents, if it has any.
    ///
    /// # Errors
    /// A setting out of range, or no thread.
    pub fn start(
        config: MonitorConfig,
        baseline: Option<&Baseline>,
        metrics: Metrics,
    ) -> Result<Self, MonitorError> {
        config.check()?;
        let baseline = baseline.map(|baseline| {
            let values = baseline.latents.iter().map(|&v| f64::from(v)).collect();
            // The baseline's reader has checked its shape.
            let latents = Array2::from_shape_vec((baseline.len(), baseline.dimension), values);
            Arc::new(BaselineSet::new(latents.unwrap_or_default(), BaselineOrigin::Checkpoint))
        });
        let (messages, inbox) = channel();
        let monitor = Self {
            messages,
            pending: Arc::default(),
            max_pending: config.max_pending,
            baseline: baseline.clone(),
            runs: Arc::default(),
            metrics: metrics.clone(),
            thread: Arc::default(),
        };
        let worker = Worker {
            config: Arc::new(config),
            baseline,
            runs: monitor.runs.clone(),
            pending: monitor.pending.clone(),
            metrics,
        };
        let thread = std::thread::Builder::new()
            .name("monitor".to_owned())
            .spawn(move || worker.run(&inbox))?;
        *monitor.thread.lock() = Some(thread);
        Ok(monitor)
    }

    /// Takes an observation; never waits. Answers of an evaluation are not monitored.
    pub fn observe(&self, observation: Observation) {
        let count = observation.samples.len();
        if count == 0 || observation.origin.role == Role::Eval {
            return;
        }
        if self.pending.load(Ordering::Relaxed) + count > self.max_pending {
            self.metrics.monitor_dropped.inc_by(count as u64);
            return;
        }
        self.pending.fetch_add(count, Ordering::Relaxed);
        // Fails only after `stop`, when nobody asks for the samples any more.
        let _ = self.messages.send(Message::Observed(observation));
    }

    /// The last finished evaluation of a run.
    pub fn last_evaluation(&self, run: &str) -> Option<Evaluation> {
        self.find(run).ok()?.lock().last().cloned()
    }

    /// Distances to the SFT latents of a run, or to the checkpoint's for a run that is not known yet.
    pub fn mahalanobis(&self, run: &str) -> Option<Arc<Mahalanobis>> {
        match self.find(run) {
            Ok(run) => run.lock().baseline()?.mahalanobis.clone(),
            Err(_) => self.baseline.as_ref()?.mahalanobis.clone(),
        }
    }

    /// Every run, by name.
    pub fn runs(&self) -> Vec<RunView> {
        self.runs.read().values().map(|run| run.lock().view()).collect()
    }

    /// One run.
    ///
    /// # Errors
    /// Where there is no such run.
    pub fn run(&self, run: &str) -> Result<RunView, MonitorError> {
        Ok(self.find(run)?.lock().view())
    }

    /// The evaluations of a run whose window ends at `from_step` or later; all of them without it.
    ///
    /// # Errors
    /// Where there is no such run.
    pub fn evaluations(
        &self,
        run: &str,
        from_step: Option<u64>,
    ) -> Result<Vec<Evaluation>, MonitorError> {
        Ok(self.find(run)?.lock().evaluations(from_step))
    }

    /// Evaluates the open window of a run after everything that was observed before this call.
    /// Blocks until that is done.
    ///
    /// # Errors
    /// Where there is no such run, or its window is empty.
    pub fn evaluate(&self, run: &str) -> Result<Evaluation, MonitorError> {
        self.ask(run, |answer| Message::Evaluate(run.to_owned(), answer))
    }

    /// Forgets a run.
    ///
    /// # Errors
    /// Where there is no such run.
    pub fn remove(&self, run: &str) -> Result<(), MonitorError> {
        self.ask(run, |answer| Message::Remove(run.to_owned(), answer))
    }

    /// Finishes what was observed, and ends the thread.
    pub fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }

    fn ask<T>(
        &self,
        run: &str,
        message: impl FnOnce(Sender<Result<T, MonitorError>>) -> Message,
    ) -> Result<T, MonitorError> {
        let (answer, inbox) = channel();
        let _ = self.messages.send(message(answer));
        // The thread has ended: whatever it knew of the run is no longer kept up.
        inbox.recv().unwrap_or_else(|_| Err(MonitorError::UnknownRun(run.to_owned())))
    }

    fn find(&self, run: &str) -> Result<Arc<Mutex<Run>>, MonitorError> {
        let runs = self.runs.read();
        runs.get(run).cloned().ok_or_else(|| MonitorError::UnknownRun(run.to_owned()))
    }
}

impl MonitorConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn check(&self) -> Result<(), MonitorError> {
        let wrong = |setting, message: String| Err(MonitorError::Setting { setting, message });
        for (setting, value) in [
            ("window", self.window),
            ("min_window", self.min_window),
            ("max_window", self.max_window),
            ("history", self.history),
            ("max_runs", self.max_runs),
            ("max_pending", self.max_pending),
        ] {
            if value == 0 {
                return wrong(setting, "must be at least 1".to_owned());
            }
        }
        if self.window > self.max_window || self.min_window > self.max_window {
            return wrong("max_window", "must be at least `window` and `min_window`".to_owned());
        }
        if let Err(error) = self.csi.check() {
            return wrong("csi", error.to_string());
        }
        if let Err(error) = early_stop::EarlyStop::new(self.early_stop.clone()) {
            return wrong("early_stop", error.to_string());
        }
        Ok(())
    }
}

/// The monitor's thread.
struct Worker {
    config: Arc<MonitorConfig>,
    baseline: Option<Arc<BaselineSet>>,
    runs: Arc<RwLock<BTreeMap<String, Arc<Mutex<Run>>>>>,
    pending: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl Worker {
    fn run(&self, inbox: &Receiver<Message>) {
        while let Ok(message) = inbox.recv() {
            let samples = match &message {
                Message::Stop => return,
                Message::Observed(observation) => observation.samples.len(),
                Message::Evaluate(..) | Message::Remove(..) => 0,
            };
            // A fault in one run's statistics must not end the others'.
            if catch_unwind(AssertUnwindSafe(|| self.handle(message))).is_err() {
                tracing::error!("the monitor failed on a message");
            }
            self.pending.fetch_sub(samples, Ordering::Relaxed);
        }
    }

    fn handle(&self, message: Message) {
        match message {
            Message::Observed(observation) => {
                self.metrics.monitor_lag_seconds.set(observation.at.elapsed().as_secs_f64());
                self.observe(observation);
            }
            Message::Evaluate(run, answer) => {
                let _ = answer.send(self.evaluate(&run));
            }
            Message::Remove(run, answer) => {
                let removed = self.runs.write().remove(&run);
                self.metrics.runs.remove(&run);
                let found = removed.map(|_| ()).ok_or(MonitorError::UnknownRun(run));
                let _ = answer.send(found);
            }
            Message::Stop => {}
        }
    }

    fn observe(&self, observation: Observation) {
        let Observation { origin, samples, .. } = observation;
        let run = self.run_named(&origin.run);
        if origin.role == Role::Baseline {
            run.lock().record_baseline(samples);
            return self.renew_baseline(&run, false);
        }
        for sample in samples {
            let window = run.lock().add(origin.step, sample);
            if let Some(window) = window {
                self.finish(&run, window);
            }
        }
    }

    /// Fits a recorded baseline that is due, without holding the run's lock: requests take it too.
    fn renew_baseline(&self, run: &Mutex<Run>, evaluating: bool) {
        let due = run.lock().due_baseline(evaluating);
        if let Some(latents) = due {
            let baseline = BaselineSet::new(latents, BaselineOrigin::Recorded);
            run.lock().use_baseline(baseline);
        }
    }

    fn evaluate(&self, name: &str) -> Result<Evaluation, MonitorError> {
        let run = self.runs.read().get(name).cloned();
        let run = run.ok_or_else(|| MonitorError::UnknownRun(name.to_owned()))?;
        let window = run.lock().take_window();
        let window = window.ok_or_else(|| MonitorError::EmptyWindow(name.to_owned()))?;
        Ok(self.finish(&run, window))
    }

    /// Evaluates a window without holding the run's lock, so that readers never wait for it.
    fn finish(&self, run: &Mutex<Run>, window: window::Window) -> Evaluation {
        let started = Instant::now();
        self.renew_baseline(run, true);
        let baseline = run.lock().baseline();
        let result = run::separation(&window, baseline.as_deref(), &self.config.csi);
        let mut run = run.lock();
        let evaluation = run.conclude(window, baseline.as_ref(), result, started.elapsed());
        self.publish(run.name(), &evaluation);
        evaluation
    }

    fn publish(&self, run: &str, evaluation: &Evaluation) {
        let metrics = &self.metrics.runs;
        metrics.evaluations.with_label_values(&[run]).inc();
        metrics
            .early_stop
            .with_label_values(&[run])
            .set(f64::from(u8::from(evaluation.early_stop)));
        for (gauge, value) in [
            (&metrics.csi, evaluation.csi),
            (&metrics.csi_per_sample, evaluation.csi_per_sample),
            (&metrics.csi_change_ratio, evaluation.csi_ratio),
            (&metrics.noise_fraction, evaluation.noise_fraction),
        ] {
            match value {
                Some(value) => gauge.with_label_values(&[run]).set(value),
                // An older value would pass for this window's. An error says there was none.
                None => drop(gauge.remove_label_values(&[run])),
            }
        }
        if evaluation.early_stop {
            tracing::warn!(
                run,
                step = evaluation.last_step,
                reason = evaluation.reason,
                "early stop"
            );
        } else {
            tracing::info!(
                run,
                step = evaluation.last_step,
                csi = evaluation.csi,
                "window evaluated"
            );
        }
    }

    /// The run of that name; makes it, at the cost of the run that was idle longest, if need be.
    fn run_named(&self, name: &str) -> Arc<Mutex<Run>> {
        let mut runs = self.runs.write();
        if let Some(run) = runs.get(name) {
            return run.clone();
        }
        if runs.len() >= self.config.max_runs {
            let idle = runs.iter().map(|(name, run)| (run.lock().last_seen(), name.clone())).min();
            if let Some((_, idle)) = idle {
                tracing::info!(run = idle, "forgotten: more than max_runs runs");
                runs.remove(&idle);
                self.metrics.runs.remove(&idle);
            }
        }
        let run = Run::new(name.to_owned(), self.config.clone(), self.baseline.clone());
        let run = Arc::new(Mutex::new(run));
        runs.insert(name.to_owned(), run.clone());
        run
    }
}

/// Seconds since the Unix epoch.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
