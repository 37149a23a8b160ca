//! The handle by which the rest of the program reaches the monitor's threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::evaluator::Evaluator;
use super::run::{Latest, Run, RunView};
use super::worker::{Runs, Worker, WorkerMessage};
use crate::checkpoint::Baseline;
use crate::metrics::Metrics;
use crate::monitor::answers::{BaselineAnswers, BaselineSet, Observation, Role};
use crate::monitor::journal::Journal;
use crate::monitor::settings::{MonitorConfig, MonitorError};
use crate::monitor::statistics::Mahalanobis;
use crate::monitor::verdict::{Evaluation, ShapingParameters};
use crate::telemetry::spawn;

/// Time between two looks for room, where requests wait for it.
const FULL_RETRY: Duration = Duration::from_millis(5);

/// Handle to the monitor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Monitor {
    messages: Sender<WorkerMessage>,
    pending: Arc<AtomicUsize>,
    max_pending: usize,
    baseline: Option<Arc<BaselineSet>>,
    runs: Runs,
    config: Arc<MonitorConfig>,
    journal: Option<Journal>,
    metrics: Metrics,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Monitor {
    /// Starts the monitor, with the runs of its journal that are of the same weights. `baseline` holds the
    /// checkpoint's SFT latents, if it has any; `weights` is the hash of the weights.
    ///
    /// # Errors
    /// A setting out of range, a journal that cannot be used, or no thread.
    pub fn start(
        config: MonitorConfig,
        baseline: Option<&Baseline>,
        weights: &str,
        metrics: Metrics,
    ) -> Result<Self, MonitorError> {
        config.check()?;
        let baseline = baseline.and_then(BaselineSet::of_checkpoint).map(Arc::new);
        let config = Arc::new(config);
        let (journal, stored, next_run) = if config.journal.is_on() {
            let journal = &config.journal;
            let opened = Journal::open(journal, weights, config.max_pending, metrics.clone())?;
            (Some(opened.0), opened.1, opened.2)
        } else {
            (None, Vec::new(), 0)
        };
        let (messages, inbox) = channel();
        let monitor = Self {
            messages,
            pending: Arc::default(),
            max_pending: config.max_pending,
            baseline: baseline.clone(),
            runs: Runs::default(),
            config: config.clone(),
            journal: journal.clone(),
            metrics: metrics.clone(),
            thread: Arc::default(),
        };
        let evaluator =
            Evaluator::start(journal.clone(), monitor.pending.clone(), metrics.clone())?;
        let mut worker = Worker {
            config,
            baseline,
            weights: weights.to_owned(),
            runs: monitor.runs.clone(),
            next_run,
            journal,
            pending: monitor.pending.clone(),
            metrics,
            evaluator,
        };
        worker.resume(stored);
        let thread = spawn("monitor", move || worker.run(&inbox))?;
        *monitor.thread.lock() = Some(thread);
        Ok(monitor)
    }

    /// Takes an observation. Never waits, but with a journal whose `flush_ms` is 0: then until there is
    /// room, and until the journal holds the observation or is known to fail. Answers of an evaluation
    /// are not monitored.
    pub async fn observe(&self, observation: Observation) {
        let count = observation.samples.len();
        if count == 0 || observation.origin.role == Role::Eval {
            return;
        }
        let durable = self.journal.as_ref().is_some_and(Journal::is_durable);
        let is_full = || {
            let pending = self.pending.load(Ordering::Relaxed);
            // What is larger than the whole limit fits when nothing else waits.
            pending + count > self.max_pending && (!durable || pending > 0)
        };
        while is_full() {
            if !durable {
                self.metrics.monitor_dropped.inc_by(count as u64);
                return;
            }
            tokio::time::sleep(FULL_RETRY).await;
        }
        self.pending.fetch_add(count, Ordering::Relaxed);
        if let Some(journal) = &self.journal {
            journal.expect(count);
        }
        let (committed, done) = tokio::sync::oneshot::channel();
        let committed = durable.then_some(committed);
        // Fails only after `stop`, when nobody asks for the samples any more.
        let _ = self.messages.send(WorkerMessage::Observed(observation, committed));
        if durable {
            // An error is a journal that fails, which the metrics say.
            let _ = done.await;
        }
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

    /// What is taken off the rewards of a run, and the distances for that.
    pub fn shaping(&self, run: &str) -> (ShapingParameters, Option<Arc<Mahalanobis>>) {
        let (shaping, baseline) = match self.find(run) {
            Ok(run) => {
                let run = run.lock();
                (run.config().shaping, run.baseline())
            }
            Err(_) => (self.config.shaping, self.baseline.clone()),
        };
        (shaping, baseline.and_then(|baseline| baseline.mahalanobis.clone()))
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
        self.ask(run, |answer| WorkerMessage::Evaluate(run.to_owned(), answer))
    }

    /// Most latents of a baseline.
    pub fn max_baseline(&self) -> usize {
        self.config.max_window
    }

    /// Gives a run a baseline, in place of the one it has; makes the run, if there is none. Blocks until
    /// that is done, and in the journal.
    ///
    /// # Errors
    /// Where there is no answer in it.
    pub fn set_baseline(
        &self,
        run: &str,
        answers: BaselineAnswers,
    ) -> Result<Arc<BaselineSet>, MonitorError> {
        let set =
            self.ask(run, |answer| WorkerMessage::SetBaseline(run.to_owned(), answers, answer))?;
        self.flush();
        Ok(set)
    }

    /// Gives a run settings of its own; makes the run, if there is none. Blocks until that is done, and in
    /// the journal.
    ///
    /// # Errors
    /// [`MonitorError::Override`] where a setting cannot be had; then nothing changes.
    pub fn configure(
        &self,
        run: &str,
        overrides: Map<String, Value>,
    ) -> Result<RunView, MonitorError> {
        let view =
            self.ask(run, |answer| WorkerMessage::Configure(run.to_owned(), overrides, answer))?;
        self.flush();
        Ok(view)
    }

    /// Forgets a run. Blocks until that is done, and in the journal.
    ///
    /// # Errors
    /// Where there is no such run.
    pub fn remove(&self, run: &str) -> Result<(), MonitorError> {
        self.ask(run, |answer| WorkerMessage::Remove(run.to_owned(), answer))?;
        self.flush();
        Ok(())
    }

    fn flush(&self) {
        if let Some(journal) = &self.journal {
            journal.flush();
        }
    }

    /// Finishes what was observed and is due, and ends the threads.
    pub fn stop(&self) {
        let _ = self.messages.send(WorkerMessage::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    fn ask<T>(
        &self,
        run: &str,
        message: impl FnOnce(Sender<Result<T, MonitorError>>) -> WorkerMessage,
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
