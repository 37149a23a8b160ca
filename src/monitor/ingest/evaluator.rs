//! The thread that evaluates windows. It may be late, but holds up nobody.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use super::run::Run;
use super::window::Window;
use crate::metrics::Metrics;
use crate::monitor::answers::{BaselineAnswers, BaselineOrigin, BaselineSet};
use crate::monitor::journal::{BaselineRecord, Journal, JournalEntry};
use crate::monitor::settings::MonitorError;
use crate::monitor::verdict::{AlertKind, Evaluation, evaluate_window, judge};
use crate::telemetry::spawn;

/// What the scheduler gives the thread less of: scoring goes before statistics.
const NICENESS: i32 = 10;

/// What becomes of a request to evaluate.
pub(super) type EvaluationSender = Sender<Result<Evaluation, MonitorError>>;

/// What becomes of a request for another baseline.
pub(super) type BaselineSender = Sender<Result<Arc<BaselineSet>, MonitorError>>;

pub(super) enum EvaluationTask {
    /// Fit the recorded baseline, if it is due.
    FitBaseline(Arc<Mutex<Run>>),
    /// Use another baseline, and answer who gave it.
    SetBaseline {
        run: Arc<Mutex<Run>>,
        answers: BaselineAnswers,
        answer: BaselineSender,
    },
    /// Evaluate a window, and answer who asked for it.
    Evaluate {
        run: Arc<Mutex<Run>>,
        window: Window,
        answer: Option<EvaluationSender>,
    },
    Stop,
}

/// Handle to the thread.
pub(super) struct Evaluator {
    tasks: Sender<EvaluationTask>,
    metrics: Metrics,
    thread: JoinHandle<()>,
}

impl Evaluator {
    pub(super) fn start(
        journal: Option<Journal>,
        pending: Arc<AtomicUsize>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let (tasks, inbox) = channel();
        let work = EvaluationLoop { journal, pending, metrics: metrics.clone() };
        let thread = spawn("evaluator", move || {
            // Linux counts niceness by thread. Without it statistics are only a little more in the way.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS);
            work.run(&inbox);
        })?;
        Ok(Self { tasks, metrics, thread })
    }

    pub(super) fn send(&self, task: EvaluationTask) {
        if matches!(task, EvaluationTask::Evaluate { .. }) {
            self.metrics.evaluations_pending.inc();
        }
        // The thread outlives the worker, which is the only one to send.
        let _ = self.tasks.send(task);
    }

    /// Finishes what was sent, and ends the thread.
    pub(super) fn stop(self) {
        let _ = self.tasks.send(EvaluationTask::Stop);
        let _ = self.thread.join();
    }
}

struct EvaluationLoop {
    journal: Option<Journal>,
    pending: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl EvaluationLoop {
    fn run(&self, tasks: &Receiver<EvaluationTask>) {
        while let Ok(task) = tasks.recv() {
            let samples = match &task {
                EvaluationTask::Stop => return,
                EvaluationTask::FitBaseline(_) | EvaluationTask::SetBaseline { .. } => None,
                EvaluationTask::Evaluate { window, .. } => Some(window.samples.len()),
            };
            // A fault in one run's statistics must not end the others'. Who waits for the answer
            // is told by the sender's end.
            if catch_unwind(AssertUnwindSafe(|| self.handle(task))).is_err() {
                tracing::error!("an evaluation failed");
            }
            if let Some(samples) = samples {
                self.metrics.evaluations_pending.dec();
                self.pending.fetch_sub(samples, Ordering::Relaxed);
            }
        }
    }

    fn handle(&self, task: EvaluationTask) {
        match task {
            EvaluationTask::Stop => {}
            EvaluationTask::FitBaseline(run) => self.renew_baseline(&run, false),
            EvaluationTask::SetBaseline { run, answers, answer } => {
                let _ = answer.send(self.set_baseline(&run, answers));
            }
            EvaluationTask::Evaluate { run, window, answer } => {
                let evaluation = self.evaluate(&run, window);
                if let Some(answer) = answer {
                    let _ = answer.send(evaluation);
                }
            }
        }
    }

    /// Evaluates a window without holding the run's lock, so that readers never wait for it.
    fn evaluate(&self, run: &Mutex<Run>, window: Window) -> Result<Evaluation, MonitorError> {
        let started = Instant::now();
        self.renew_baseline(run, true);
        let (baseline, config) = {
            let run = run.lock();
            (run.baseline(), run.config().clone())
        };
        let parameters = config.statistics_parameters();
        let result = evaluate_window(&window.samples, baseline.as_deref(), &parameters);
        let judgement = baseline
            .as_deref()
            .map(|baseline| judge(&window.samples, baseline, &result, &parameters))
            .unwrap_or_default();
        let mut run = run.lock();
        if run.is_removed() {
            return Err(MonitorError::UnknownRun(run.name().to_owned()));
        }
        let evaluation =
            run.conclude(window, baseline.as_ref(), result, &judgement, started.elapsed());
        if let Some(journal) = &self.journal {
            let (id, number, keep) = (run.id(), evaluation.number, config.history);
            journal
                .append(JournalEntry::evaluated(id, number, &evaluation, &run.state(), keep), None);
        }
        self.metrics.evaluation_seconds.observe(evaluation.seconds);
        self.metrics.runs.evaluations.with_label_values(&[run.name()]).inc();
        publish(&self.metrics, run.name(), &evaluation);
        log(run.name(), &evaluation);
        Ok(evaluation)
    }

    /// Fits a recorded baseline that is due, without holding the run's lock: requests take it too.
    fn renew_baseline(&self, run: &Mutex<Run>, evaluating: bool) {
        let due = run.lock().due_baseline(evaluating);
        let Some((answers, version)) = due else { return };
        if let Some(baseline) = BaselineSet::new(answers, BaselineOrigin::Recorded, version) {
            let mut run = run.lock();
            if !run.is_removed() {
                run.use_baseline(Arc::new(baseline));
                self.keep_baseline(&run, false);
            }
        }
    }

    fn set_baseline(
        &self,
        run: &Mutex<Run>,
        answers: BaselineAnswers,
    ) -> Result<Arc<BaselineSet>, MonitorError> {
        let version = run.lock().next_version();
        let baseline = BaselineSet::new(answers, BaselineOrigin::Uploaded, version);
        let baseline = Arc::new(baseline.ok_or(MonitorError::EmptyBaseline)?);
        let mut run = run.lock();
        if run.is_removed() {
            return Err(MonitorError::UnknownRun(run.name().to_owned()));
        }
        run.forget_recorded();
        run.use_baseline(baseline.clone());
        self.keep_baseline(&run, true);
        Ok(baseline)
    }

    fn keep_baseline(&self, run: &Run, forget_recorded: bool) {
        if let (Some(journal), Some(baseline)) = (&self.journal, run.baseline()) {
            let entry =
                JournalEntry::baseline(run.id(), &BaselineRecord::of(&baseline), forget_recorded);
            journal.append(entry, None);
        }
    }
}

/// Sets a run's gauges to its last evaluation.
pub(super) fn publish(metrics: &Metrics, run: &str, evaluation: &Evaluation) {
    let metrics = &metrics.runs;
    let statistics = &evaluation.statistics;
    let early_stop = f64::from(u8::from(evaluation.early_stop));
    for (name, value) in [
        ("inform_early_stop", Some(early_stop)),
        ("inform_csi", statistics.csi),
        ("inform_csi_per_sample", statistics.csi_per_sample),
        ("inform_csi_null_p95", evaluation.csi_null_p95),
        ("inform_csi_change_ratio", evaluation.csi_ratio),
        ("inform_energy_null_p95", evaluation.energy_null_p95),
        ("inform_energy_p", evaluation.energy_p),
        ("inform_mop_null_p95", evaluation.mop_null_p95),
        ("inform_noise_fraction", statistics.noise_fraction),
        ("inform_energy", statistics.energy),
        ("inform_mop", statistics.mop),
        ("inform_mahalanobis_mean", statistics.mahalanobis_mean),
        ("inform_dispersion_ratio", statistics.dispersion_ratio),
        ("inform_knn_distance", statistics.knn_distance),
        ("inform_paired_distance", statistics.paired_distance),
        ("inform_saturation", statistics.saturation),
        ("inform_group_zero_variance_rate", statistics.group_zero_variance_rate),
        ("inform_reward_length_rho", statistics.reward_length_rho),
        ("inform_distinct_ratio", statistics.distinct_ratio),
        ("inform_reward_mean", Some(statistics.reward_mean)),
        ("inform_reward_std", Some(statistics.reward_std)),
        ("inform_tokens_mean", Some(statistics.tokens_mean)),
        ("inform_sigma_mean", statistics.sigma_mean),
        ("inform_divergence_mean", statistics.divergence_mean),
    ] {
        metrics.set(name, run, value);
    }
    for kind in AlertKind::ALL {
        let active = evaluation.alerts.contains(&kind);
        metrics.alert.with_label_values(&[run, kind.name()]).set(i64::from(active));
    }
}

fn log(run: &str, evaluation: &Evaluation) {
    let step = evaluation.last_step;
    if evaluation.early_stop {
        tracing::warn!(run, step, reason = evaluation.reason, "early stop");
    } else {
        tracing::info!(run, step, csi = evaluation.statistics.csi, "window evaluated");
    }
}
