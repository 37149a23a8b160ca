//! The thread that sorts answers into runs and windows.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use super::baseline::BaselineSet;
use super::evaluator::{Evaluator, Task};
use super::run::Run;
use super::window::Window;
use super::{Evaluation, MonitorConfig, MonitorError, Observation, Role};
use crate::metrics::Metrics;

/// The runs that are known, by name.
pub(super) type Runs = Arc<RwLock<BTreeMap<String, Arc<Mutex<Run>>>>>;

/// What becomes of a request to evaluate.
pub(super) type EvaluationSender = Sender<Result<Evaluation, MonitorError>>;

pub(super) enum Message {
    Observed(Observation),
    Evaluate(String, EvaluationSender),
    Remove(String, Sender<Result<(), MonitorError>>),
    Stop,
}

/// The thread's state. It only sorts: an answer costs a copy of its latent.
pub(super) struct Worker {
    config: Arc<MonitorConfig>,
    baseline: Option<Arc<BaselineSet>>,
    runs: Runs,
    /// Samples that wait to be sorted, or in a window to be evaluated.
    pending: Arc<AtomicUsize>,
    metrics: Metrics,
    evaluator: Evaluator,
}

impl Worker {
    pub(super) fn new(
        config: Arc<MonitorConfig>,
        baseline: Option<Arc<BaselineSet>>,
        runs: Runs,
        pending: Arc<AtomicUsize>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let evaluator = Evaluator::start(config.clone(), pending.clone(), metrics.clone())?;
        Ok(Self { config, baseline, runs, pending, metrics, evaluator })
    }

    pub(super) fn run(self, inbox: &Receiver<Message>) {
        while let Ok(message) = inbox.recv() {
            let samples = match &message {
                Message::Stop => break,
                Message::Observed(observation) => observation.samples.len(),
                Message::Evaluate(..) | Message::Remove(..) => 0,
            };
            // A fault in one run must not end the others'.
            if catch_unwind(AssertUnwindSafe(|| self.handle(message))).is_err() {
                tracing::error!("the monitor failed on a message");
            }
            self.pending.fetch_sub(samples, Ordering::Relaxed);
        }
        self.evaluator.stop();
    }

    fn handle(&self, message: Message) {
        match message {
            Message::Observed(observation) => {
                self.metrics.monitor_lag_seconds.set(observation.at.elapsed().as_secs_f64());
                self.observe(observation);
            }
            Message::Evaluate(run, answer) => self.evaluate(&run, answer),
            Message::Remove(name, answer) => {
                let removed = self.runs.write().remove(&name);
                if let Some(run) = &removed {
                    self.forget(&name, run);
                }
                let found = removed.map(|_| ()).ok_or(MonitorError::UnknownRun(name));
                let _ = answer.send(found);
            }
            Message::Stop => {}
        }
    }

    fn observe(&self, observation: Observation) {
        let Observation { origin, samples, .. } = observation;
        let run = self.run_named(&origin.run);
        if origin.role == Role::Baseline {
            run.lock().record_baseline(&samples);
            return self.evaluator.send(Task::FitBaseline(run));
        }
        for sample in samples {
            let window = run.lock().add(origin.step, sample);
            if let Some(window) = window {
                self.hand_over(&run, window, None);
            }
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
        self.evaluator.send(Task::Evaluate { run: run.clone(), window, answer });
    }

    /// The run of that name; makes it, at the cost of the run that was idle longest, if need be.
    fn run_named(&self, name: &str) -> Arc<Mutex<Run>> {
        let mut runs = self.runs.write();
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
        let run = Run::new(name.to_owned(), self.config.clone(), self.baseline.clone());
        let run = Arc::new(Mutex::new(run));
        runs.insert(name.to_owned(), run.clone());
        run
    }

    /// Takes back what was published. Under the run's lock: the evaluator publishes under it too.
    fn forget(&self, name: &str, run: &Mutex<Run>) {
        let mut run = run.lock();
        run.mark_removed();
        self.metrics.runs.remove(name);
    }
}
