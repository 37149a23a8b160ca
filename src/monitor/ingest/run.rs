//! One training run: its baseline, its open window, its evaluations.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::window::{Window, Windows};
use crate::monitor::answers::{BaselineAnswers, BaselineOrigin, BaselineSet, Sample};
use crate::monitor::journal::{StateRecord, unix_seconds};
use crate::monitor::settings::{MonitorConfig, OverrideError, RunConfig};
use crate::monitor::verdict::{
    Alert, Alerts, Changes, EarlyStop, Evaluation, Judgement, Look, WindowEvaluation,
};

/// A run as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct RunView {
    /// The run's name.
    pub id: String,
    /// Answers of the policy seen so far.
    pub samples: u64,
    /// Answers in the open window.
    pub open_window: usize,
    /// Latents in the baseline in use.
    pub baseline_samples: usize,
    /// Where the baseline in use comes from; null where there is none.
    pub baseline: Option<BaselineOrigin>,
    /// Version of that baseline: 0 for the checkpoint's, then counted in each run.
    pub baseline_version: Option<u64>,
    /// Evaluations so far.
    pub evaluations: u64,
    /// Whether an evaluation said that training should stop.
    pub early_stop: bool,
    /// The evaluation that first said so.
    pub stopped_at: Option<Evaluation>,
    /// The last evaluation.
    pub last_evaluation: Option<Evaluation>,
    /// Alerts of the run, those that ended and those that last, oldest first.
    pub alerts: Vec<Alert>,
    /// The settings that the run is monitored with.
    pub config: RunConfig,
}

/// What evaluations go on from.
#[derive(Serialize, Deserialize)]
struct RunState {
    evaluations: u64,
    versions: u64,
    early_stop: Option<EarlyStop>,
    stopped: Option<Evaluation>,
    alerts: Option<Alerts>,
    /// Version of the baseline.
    compared_with: Option<u64>,
}

/// The last evaluation of a run, with what it looked at.
#[derive(Debug, Clone)]
pub struct Latest {
    /// The row.
    pub evaluation: Evaluation,
    /// The window's answers.
    pub window: Arc<Window>,
    /// What they were compared with.
    pub baseline: Option<Arc<BaselineSet>>,
}

/// The state of one run.
#[derive(Debug)]
pub(super) struct Run {
    name: String,
    /// Its number in the journal.
    id: u64,
    config: Arc<MonitorConfig>,
    /// What of it is the run's own.
    overrides: Map<String, Value>,
    /// The checkpoint's, until one was recorded.
    baseline: Option<Arc<BaselineSet>>,
    recorded: BaselineAnswers,
    /// Baselines that this run has had of its own.
    versions: u64,
    windows: Windows,
    evaluations: VecDeque<Evaluation>,
    count: u64,
    early_stop: Option<EarlyStop>,
    alerts: Alerts,
    /// What the last window was compared with.
    compared_with: Option<Arc<BaselineSet>>,
    stopped: Option<Evaluation>,
    last_window: Option<Arc<Window>>,
    last_seen: Instant,
    removed: bool,
}

impl Run {
    pub(super) fn new(
        name: String,
        id: u64,
        config: Arc<MonitorConfig>,
        baseline: Option<Arc<BaselineSet>>,
    ) -> Self {
        Self {
            name,
            id,
            overrides: Map::new(),
            windows: Windows::new(config.window, config.min_window, config.max_window),
            // The configuration was checked when the monitor started.
            early_stop: EarlyStop::new(config.early_stop.clone()).ok(),
            alerts: alerts(&config),
            config,
            baseline,
            recorded: BaselineAnswers::default(),
            versions: 0,
            evaluations: VecDeque::new(),
            count: 0,
            compared_with: None,
            stopped: None,
            last_window: None,
            last_seen: Instant::now(),
            removed: false,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn config(&self) -> &Arc<MonitorConfig> {
        &self.config
    }

    pub(super) fn overrides(&self) -> &Map<String, Value> {
        &self.overrides
    }

    /// Takes over settings of its own, beside those that it has. `server` are the server's.
    pub(super) fn configure(
        &mut self,
        server: &MonitorConfig,
        overrides: &Map<String, Value>,
    ) -> Result<(), OverrideError> {
        let mut all = self.overrides.clone();
        add(&mut all, overrides);
        let config = server.with(&all)?;
        self.windows.set_limits(config.window, config.min_window, config.max_window);
        if let Some(early_stop) = &mut self.early_stop {
            // They were checked with the rest.
            let _ = early_stop.set_parameters(config.early_stop.clone());
        }
        let _ = self.alerts.set_parameters(config.alerts.clone(), enough(&config));
        self.config = Arc::new(config);
        self.overrides = all;
        Ok(())
    }

    /// Answers of the policy seen so far.
    pub(super) fn samples(&self) -> u64 {
        self.windows.seen()
    }

    pub(super) fn last_seen(&self) -> Instant {
        self.last_seen
    }

    /// Adds an answer; returns the window that is to be evaluated now, if any.
    pub(super) fn add(&mut self, step: Option<u64>, sample: Sample) -> Option<Window> {
        self.last_seen = Instant::now();
        self.windows.add(step, sample)
    }

    /// The open window, if it holds anything.
    pub(super) fn take_window(&mut self) -> Option<Window> {
        self.windows.take()
    }

    /// Adds SFT answers, up to `max_window`; answers how many there was room for.
    pub(super) fn record_baseline(&mut self, samples: &[Sample]) -> usize {
        self.last_seen = Instant::now();
        let room = self.config.max_window.saturating_sub(self.recorded.len());
        let kept = room.min(samples.len());
        for sample in &samples[..kept] {
            self.recorded.push(sample);
        }
        kept
    }

    /// Recorded SFT answers.
    pub(super) fn recorded(&self) -> usize {
        self.recorded.len()
    }

    pub(super) fn recorded_answers(&self) -> &BaselineAnswers {
        &self.recorded
    }

    /// Answers that are recorded from now on make a baseline of their own.
    pub(super) fn forget_recorded(&mut self) {
        self.recorded = BaselineAnswers::default();
    }

    /// The version that the next baseline of its own has.
    pub(super) fn next_version(&self) -> u64 {
        self.versions + 1
    }

    /// The recorded answers, and the version that they become, where they are to be the baseline in use:
    /// when there are `min_window` of them, when they have doubled, and before the first window is
    /// compared (`evaluating`). In between the baseline stays as it is, so that windows are compared
    /// with the same thing, and single answers do not each cost a fit.
    pub(super) fn due_baseline(&self, evaluating: bool) -> Option<(BaselineAnswers, u64)> {
        let recorded = self.recorded.len();
        let in_use = match &self.baseline {
            Some(set) if set.origin == BaselineOrigin::Recorded => set.len(),
            _ => 0,
        };
        let compared = match (&self.baseline, &self.compared_with) {
            (Some(set), Some(compared)) => Arc::ptr_eq(set, compared),
            _ => false,
        };
        let due = recorded >= self.config.min_window
            && if evaluating && !compared {
                recorded > in_use
            } else {
                recorded >= 2 * in_use.max(1)
            };
        due.then(|| (self.recorded.clone(), self.next_version()))
    }

    /// Replaces the baseline in use.
    pub(super) fn use_baseline(&mut self, baseline: Arc<BaselineSet>) {
        self.last_seen = Instant::now();
        self.versions = self.versions.max(baseline.version);
        self.baseline = Some(baseline);
    }

    /// The baseline in use.
    pub(super) fn baseline(&self) -> Option<Arc<BaselineSet>> {
        self.baseline.clone()
    }

    /// Turns a window's statistics into the run's next evaluation.
    pub(super) fn conclude(
        &mut self,
        window: Window,
        baseline: Option<&Arc<BaselineSet>>,
        evaluated: WindowEvaluation,
        judgement: &Judgement,
        elapsed: Duration,
    ) -> Evaluation {
        if baseline.map(Arc::as_ptr) != self.compared_with.as_ref().map(Arc::as_ptr) {
            // Distances to another baseline are no continuation of those before.
            self.early_stop = EarlyStop::new(self.config.early_stop.clone()).ok();
            self.compared_with = baseline.cloned();
        }
        let WindowEvaluation { statistics, csi_error, .. } = evaluated;
        let mut reason = match (&csi_error, baseline) {
            (Some(error), _) => Some(error.to_string()),
            (None, Some(_)) => None,
            (None, None) => Some("no baseline: CSI needs the latents of SFT answers".to_owned()),
        };
        let samples = window.samples.len();
        let enough = enough(&self.config);
        let judged = statistics.csi_per_sample.filter(|_| samples >= enough);
        if statistics.csi.is_some() && judged.is_none() {
            reason = Some(format!(
                "{samples} answers are too few to judge a change by; at least {enough} are needed"
            ));
        }
        let verdict = judged.and_then(|csi| Some(self.early_stop.as_mut()?.push(csi)));
        if let Some(verdict) = &verdict {
            reason = reason.or_else(|| verdict.reason.clone());
        }
        let stops = verdict.as_ref().is_some_and(|verdict| verdict.stop);
        if let Some(stopped) = self.stopped.as_ref().filter(|_| !stops) {
            // A verdict stays until the run is removed: a trainer may look less often than windows end.
            reason.clone_from(&stopped.reason);
        }
        let early_stop = stops || self.stopped.is_some();
        if !early_stop {
            let lacks = baseline.and_then(|baseline| baseline.lacks());
            let all: Vec<String> = [reason, lacks].into_iter().flatten().collect();
            reason = (!all.is_empty()).then(|| all.join("; "));
        }
        let finished_at = unix_seconds();
        let null = judgement.null.as_ref();
        let changes = self.alerts.push(&Look {
            number: self.count,
            step: window.last_step,
            at: finished_at,
            samples,
            baseline: baseline.map(|baseline| baseline.version),
            null,
            // Tokens, since characters are not known of every protocol's answers.
            length: Some(statistics.tokens_mean),
            outlying: &judgement.outlying,
        });
        self.log(&changes);
        let energy = null.and_then(|null| null.energy);
        let evaluation = Evaluation {
            number: self.count,
            first_step: window.first_step,
            last_step: window.last_step,
            samples,
            statistics,
            csi_null_p95: null.and_then(|null| Some(null.csi?.quantile)).filter(finite),
            energy_null_p95: energy.map(|judged| judged.quantile).filter(finite),
            energy_p: energy.and_then(|judged| judged.p).filter(finite),
            mop_null_p95: null.and_then(|null| Some(null.mop?.quantile)).filter(finite),
            csi_change: verdict.as_ref().and_then(|verdict| verdict.change),
            csi_ratio: verdict.as_ref().and_then(|verdict| verdict.ratio),
            early_stop,
            reason,
            alerts: self.alerts.active().map(|alert| alert.kind).collect(),
            baseline_samples: baseline.map_or(0, |baseline| baseline.len()),
            baseline: baseline.map(|baseline| baseline.origin),
            baseline_version: baseline.map(|baseline| baseline.version),
            finished_at,
            seconds: elapsed.as_secs_f64(),
        };
        if stops && self.stopped.is_none() {
            self.stopped = Some(evaluation.clone());
        }
        self.count += 1;
        self.evaluations.push_back(evaluation.clone());
        if self.evaluations.len() > self.config.history {
            self.evaluations.pop_front();
        }
        self.last_window = Some(Arc::new(window));
        evaluation
    }

    fn log(&self, changes: &Changes) {
        for alert in self.alerts.active().filter(|alert| changes.raised.contains(&alert.kind)) {
            let kind = alert.kind.name();
            tracing::warn!(run = self.name, kind, message = alert.message, "alert");
        }
        for kind in &changes.resolved {
            tracing::info!(run = self.name, kind = kind.name(), "alert ended");
        }
    }

    /// What the journal keeps, beside the samples, the baseline and the rows.
    pub(super) fn state(&self) -> StateRecord {
        let window = self.last_window.as_ref();
        let state = RunState {
            evaluations: self.count,
            versions: self.versions,
            early_stop: self.early_stop.clone(),
            stopped: self.stopped.clone(),
            alerts: Some(self.alerts.clone()),
            compared_with: self.compared_with.as_ref().map(|baseline| baseline.version),
        };
        StateRecord {
            window: window.map_or(0, |window| window.first),
            consumed: window.map_or(0, |window| window.end),
            // Numbers and texts: this cannot fail.
            state: serde_json::to_value(state).unwrap_or_default(),
        }
    }

    /// The run as it was when the state was kept. `last_window` is what its last evaluation looked at, as
    /// far as its samples are kept. The baseline must be in use already.
    pub(super) fn restore(
        &mut self,
        record: StateRecord,
        evaluations: Vec<Evaluation>,
        last_window: Option<Window>,
    ) -> Result<(), serde_json::Error> {
        let state: RunState = serde_json::from_value(record.state)?;
        self.count = state.evaluations;
        self.versions = self.versions.max(state.versions);
        self.stopped = state.stopped;
        if let Some(alerts) = state.alerts {
            self.alerts = alerts;
            let config = &self.config;
            let _ = self.alerts.set_parameters(config.alerts.clone(), enough(config));
        }
        let in_use = self.baseline.as_ref();
        if state.compared_with == in_use.map(|baseline| baseline.version) {
            self.compared_with = in_use.cloned();
            self.early_stop = state.early_stop;
            if let Some(early_stop) = &mut self.early_stop {
                let _ = early_stop.set_parameters(self.config.early_stop.clone());
            }
        }
        let surplus = evaluations.len().saturating_sub(self.config.history);
        self.evaluations = evaluations.into_iter().skip(surplus).collect();
        self.last_window = last_window.map(Arc::new);
        self.windows.go_on_at(record.consumed);
        Ok(())
    }

    /// Adds an answer that was seen before the restart, under its number.
    pub(super) fn add_again(
        &mut self,
        number: u64,
        step: Option<u64>,
        sample: Sample,
    ) -> Option<Window> {
        self.windows.go_on_at(number);
        self.windows.add(step, sample)
    }

    /// The next answer has this number, unless it has a later one.
    pub(super) fn go_on_at(&mut self, number: u64) {
        self.windows.go_on_at(number);
    }

    /// When something of the run came last.
    pub(super) fn seen_at(&mut self, at: Instant) {
        self.last_seen = at;
    }

    /// What the last evaluation looked at.
    pub(super) fn latest(&self) -> Option<Latest> {
        Some(Latest {
            evaluation: self.last()?.clone(),
            window: self.last_window.clone()?,
            baseline: self.compared_with.clone(),
        })
    }

    /// The run is no longer known: what is still evaluated of it is not to be published.
    pub(super) fn mark_removed(&mut self) {
        self.removed = true;
    }

    pub(super) fn is_removed(&self) -> bool {
        self.removed
    }

    pub(super) fn last(&self) -> Option<&Evaluation> {
        self.evaluations.back()
    }

    pub(super) fn evaluations(&self, from_step: Option<u64>) -> Vec<Evaluation> {
        let wanted = |evaluation: &&Evaluation| match from_step {
            Some(from) => evaluation.last_step.is_some_and(|step| step >= from),
            None => true,
        };
        self.evaluations.iter().filter(wanted).cloned().collect()
    }

    pub(super) fn view(&self) -> RunView {
        let baseline = self.baseline.as_ref();
        RunView {
            id: self.name.clone(),
            samples: self.samples(),
            open_window: self.windows.len(),
            baseline_samples: baseline.map_or(0, |baseline| baseline.len()),
            baseline: baseline.map(|baseline| baseline.origin),
            baseline_version: baseline.map(|baseline| baseline.version),
            evaluations: self.count,
            early_stop: self.stopped.is_some(),
            stopped_at: self.stopped.clone(),
            last_evaluation: self.last().cloned(),
            alerts: self.alerts.all(),
            config: self.config.of_run(),
        }
    }
}

/// Fewest answers of a window that anything is judged by.
fn enough(config: &MonitorConfig) -> usize {
    config.min_window.min(config.window)
}

/// Alerts of a run that has none. The configuration was checked when the monitor started.
fn alerts(config: &MonitorConfig) -> Alerts {
    Alerts::new(config.alerts.clone(), enough(config)).unwrap_or_default()
}

fn finite(value: &f64) -> bool {
    value.is_finite()
}

/// Adds settings to others, object by object.
fn add(settings: &mut Map<String, Value>, given: &Map<String, Value>) {
    for (name, value) in given {
        match (settings.get_mut(name), value) {
            (Some(Value::Object(settings)), Value::Object(given)) => add(settings, given),
            _ => drop(settings.insert(name.clone(), value.clone())),
        }
    }
}
