//! The monitor: the latents of each training run, watched for reward over-optimisation.
//!
//! The engine shows it every scored answer; a thread of its own sorts them into runs and windows
//! (`worker.rs`), and another evaluates each window (`evaluator.rs`). Scoring never waits for them.

pub mod alerts;
mod baseline;
mod config;
pub mod early_stop;
mod evaluation;
mod evaluator;
mod run;
mod sample;
pub mod statistics;
mod window;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use thiserror::Error;

use crate::checkpoint::Baseline;
use crate::metrics::Metrics;
pub use baseline::{BaselineAnswers, BaselineOrigin, BaselineSet};
pub use config::{MonitorConfig, StatisticsConfig};
pub use evaluation::Evaluation;
use run::Run;
pub use run::{Latest, RunView};
pub use sample::{Observation, Origin, Role, Sample, Subject, fingerprint};
use statistics::mahalanobis::Mahalanobis;
pub use window::Window;
use worker::{Message, Runs, Worker};

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

/// Handle to the monitor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Monitor {
    messages: Sender<Message>,
    pending: Arc<AtomicUsize>,
    max_pending: usize,
    baseline: Option<Arc<BaselineSet>>,
    runs: Runs,
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
        let baseline = baseline.and_then(|baseline| {
            let answers = BaselineAnswers {
                latents: baseline.latents.iter().map(|&value| f64::from(value)).collect(),
                dimension: baseline.dimension,
                ..BaselineAnswers::default()
            };
            BaselineSet::new(answers, BaselineOrigin::Checkpoint, 0).map(Arc::new)
        });
        let (messages, inbox) = channel();
        let monitor = Self {
            messages,
            pending: Arc::default(),
            max_pending: config.max_pending,
            baseline: baseline.clone(),
            runs: Runs::default(),
            metrics: metrics.clone(),
            thread: Arc::default(),
        };
        let worker = Worker::new(
            Arc::new(config),
            baseline,
            monitor.runs.clone(),
            monitor.pending.clone(),
            metrics,
        )?;
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

    /// The last evaluation of a run, with its window; `None` before the first.
    ///
    /// # Errors
    /// Where there is no such run.
    pub fn latest(&self, run: &str) -> Result<Option<Latest>, MonitorError> {
        Ok(self.find(run)?.lock().latest())
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

    /// Finishes what was observed and is due, and ends the threads.
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

/// Seconds since the Unix epoch.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
