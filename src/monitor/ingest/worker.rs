//! The thread that sorts answers into runs and windows.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde_json::{Map, Value};

use super::evaluator::{BaselineSender, EvaluationSender, EvaluationTask, Evaluator, publish};
use super::resume::resume;
use super::run::{Run, RunView};
use super::window::Window;
use crate::metrics::Metrics;
use crate::monitor::answers::{BaselineAnswers, BaselineSet, Observation, Role};
use crate::monitor::journal::{
    Committed, Journal, JournalEntry, ObservationRecord, RunRecord, StoredRun, unix_seconds,
};
use crate::monitor::settings::{MonitorConfig, MonitorError};
use crate::monitor::verdict::AlertKind;

/// The runs that are known, by name.
pub(super) type Runs = Arc<RwLock<BTreeMap<String, Arc<Mutex<Run>>>>>;

/// Pause after the last answer that waits: to wake the thread for each costs those who answer, and it,
/// more than the sorting.
const GATHERING: Duration = Duration::from_millis(2);

pub(super) enum WorkerMessage {
    Observed(Observation, Option<Committed>),
    Evaluate(String, EvaluationSender),
    SetBaseline(String, BaselineAnswers, BaselineSender),
    Configure(String, Map<String, Value>, Sender<Result<RunView, MonitorError>>),
    Remove(String, Sender<Result<(), MonitorError>>),
    Stop,
}

/// The thread's state. It only sorts: an answer costs a copy of its latent.
pub(super) struct Worker {
    pub(super) config: Arc<MonitorConfig>,
    /// The checkpoint's.
    pub(super) baseline: Option<Arc<BaselineSet>>,
    /// Hash of the weights.
    pub(super) weights: String,
    pub(super) runs: Runs,
    /// Number in the journal of the next new run.
    pub(super) next_run: u64,
    pub(super) journal: Option<Journal>,
    /// Samples that wait to be sorted, or in a window to be evaluated.
    pub(super) pending: Arc<AtomicUsize>,
    pub(super) metrics: Metrics,
    pub(super) evaluator: Evaluator,
}

impl Worker {
    /// Goes on with the runs of the journal; those beyond `max_runs` that were idle longest are forgotten.
    pub(super) fn resume(&mut self, mut stored: Vec<StoredRun>) {
        stored.sort_by(|a, b| b.last_seen.total_cmp(&a.last_seen));
        for stored in stored.drain(self.config.max_runs.min(stored.len())..) {
            self.append(|| JournalEntry::Removed { run: stored.id });
        }
        for stored in stored {
            let name = stored.record.name.clone();
            let (run, windows) = resume(stored, &self.config, self.baseline.as_ref());
            if let Some(last) = run.last() {
                publish(&self.metrics, &name, last);
            }
            let samples = run.samples();
            tracing::info!(run = name, samples, "goes on from the journal");
            let run = Arc::new(Mutex::new(run));
            self.runs.write().insert(name, run.clone());
            for window in windows {
                self.hand_over(&run, window, None);
            }
        }
    }

    pub(super) fn run(mut self, inbox: &Receiver<WorkerMessage>) {
        let mut next = inbox.recv();
        while let Ok(message) = next {
            let (samples, gathers) = match &message {
                WorkerMessage::Stop => break,
                WorkerMessage::Observed(observation, committed) => {
                    (observation.samples.len(), committed.is_none())
                }
                _ => (0, false),
            };
            // A fault in one run must not end the others'.
            if catch_unwind(AssertUnwindSafe(|| self.handle(message))).is_err() {
                tracing::error!("the monitor failed on a message");
            }
            self.pending.fetch_sub(samples, Ordering::Relaxed);
            next = inbox.try_recv().or_else(|_| {
                if gathers {
                    std::thread::sleep(GATHERING);
                }
                inbox.recv()
            });
        }
        self.evaluator.stop();
    }

    fn handle(&mut self, message: WorkerMessage) {
        match message {
            WorkerMessage::Observed(observation, committed) => {
                self.metrics.monitor_lag_seconds.set(observation.at.elapsed().as_secs_f64());
                self.observe(observation, committed);
            }
            WorkerMessage::SetBaseline(name, answers, answer) => {
                let run = self.run_named(&name);
                self.evaluator.send(EvaluationTask::SetBaseline { run, answers, answer });
            }
            WorkerMessage::Configure(name, overrides, answer) => {
                let _ = answer.send(self.configure(&name, &overrides));
            }
            WorkerMessage::Evaluate(run, answer) => self.evaluate(&run, answer),
            WorkerMessage::Remove(name, answer) => {
                let removed = self.runs.write().remove(&name);
                if let Some(run) = &removed {
                    self.forget(&name, run);
                }
                let found = removed.map(|_| ()).ok_or(MonitorError::UnknownRun(name));
                let _ = answer.send(found);
            }
            WorkerMessage::Stop => {}
        }
    }

    fn observe(&mut self, observation: Observation, committed: Option<Committed>) {
        let Observation { origin, samples, at } = observation;
        let run = self.run_named(&origin.run);
        let at = unix_seconds() - at.elapsed().as_secs_f64();
        if origin.role == Role::Baseline {
            let mut run_now = run.lock();
            let (first, id) = (run_now.recorded(), run_now.id());
            let kept = run_now.record_baseline(&samples);
            if let Some(journal) = &self.journal {
                let record = ObservationRecord::new(at, origin.step, &samples[..kept]);
                let first = first as u64;
                let entry = JournalEntry::observed(id, origin.role, first, samples.len(), &record);
                journal.append(entry, committed);
            }
            drop(run_now);
            return self.evaluator.send(EvaluationTask::FitBaseline(run));
        }
        if let Some(journal) = &self.journal {
            let record = ObservationRecord::new(at, origin.step, &samples);
            let (first, id) = {
                let run = run.lock();
                (run.samples(), run.id())
            };
            let entry = JournalEntry::observed(id, origin.role, first, samples.len(), &record);
            journal.append(entry, committed);
        }
        let seen = self.metrics.runs.samples.with_label_values(&[origin.run.as_str()]);
        seen.inc_by(samples.len() as u64);
        for sample in samples {
            let window = run.lock().add(origin.step, sample);
            if let Some(window) = window {
                self.hand_over(&run, window, None);
            }
        }
    }

    fn configure(
        &mut self,
        name: &str,
        overrides: &Map<String, Value>,
    ) -> Result<RunView, MonitorError> {
        // Before a run is made for it.
        self.config.with(overrides).map_err(MonitorError::Override)?;
        let run = self.run_named(name);
        let mut run = run.lock();
        run.configure(&self.config, overrides).map_err(MonitorError::Override)?;
        self.append(|| JournalEntry::run(run.id(), &self.record(&run)));
        Ok(run.view())
    }

    fn append(&self, entry: impl FnOnce() -> JournalEntry) {
        if let Some(journal) = &self.journal {
            journal.append(entry(), None);
        }
    }

    fn record(&self, run: &Run) -> RunRecord {
        RunRecord {
            weights: self.weights.clone(),
            name: run.name().to_owned(),
            config: run.overrides().clone(),
        }
    }

    fn evaluate(&self, name: &str, answer: EvaluationSender) {
        let run = self.runs.read().get(name).cloned();
        let Some(run) = run else {
            let _ = answer.send(Err(MonitorError::UnknownRun(name.to_owned())));
            return;
        };
        let window = run.lock().take_window();
        match window {
            Some(window) => self.hand_over(&run, window, Some(answer)),
            None => drop(answer.send(Err(MonitorError::EmptyWindow(name.to_owned())))),
        }
    }

    fn hand_over(&self, run: &Arc<Mutex<Run>>, window: Window, answer: Option<EvaluationSender>) {
        self.pending.fetch_add(window.samples.len(), Ordering::Relaxed);
        self.evaluator.send(EvaluationTask::Evaluate { run: run.clone(), window, answer });
    }

    /// The run of that name; makes it, at the cost of the run that was idle longest, if need be.
    fn run_named(&mut self, name: &str) -> Arc<Mutex<Run>> {
        let runs = self.runs.clone();
        let mut runs = runs.write();
        if let Some(run) = runs.get(name) {
            return run.clone();
        }
        if runs.len() >= self.config.max_runs {
            let idle: Option<(Instant, String)> =
                runs.iter().map(|(name, run)| (run.lock().last_seen(), name.clone())).min();
            if let Some((name, run)) = idle.and_then(|(_, idle)| runs.remove_entry(&idle)) {
                tracing::info!(run = name, "forgotten: more than max_runs runs");
                self.forget(&name, &run);
            }
        }
        let (config, baseline) = (self.config.clone(), self.baseline.clone());
        let run = Run::new(name.to_owned(), self.next_run, config, baseline);
        self.next_run += 1;
        self.append(|| JournalEntry::run(run.id(), &self.record(&run)));
        let run = Arc::new(Mutex::new(run));
        runs.insert(name.to_owned(), run.clone());
        run
    }

    /// Takes back what was published. Under the run's lock: the evaluator publishes under it too.
    fn forget(&self, name: &str, run: &Mutex<Run>) {
        let mut run = run.lock();
        run.mark_removed();
        self.append(|| JournalEntry::Removed { run: run.id() });
        self.metrics.runs.remove(name, &AlertKind::ALL.map(AlertKind::name));
    }
}
