//! When a window's statistics are too far from their nulls, for too long.
//!
//! Energy distance, CSI per sample, MOP and dispersion have a p-value in each window. Each raises its
//! alert by two rules: one window at an extreme level, or `consecutive` windows in a row at a moderate
//! one. The levels follow from one number, the false alarms that may be expected: with
//! `q = false_alarms_per_1000_windows / 1000` and `k` such kinds switched on, each rule of each kind
//! gets `b = q / (2 k)`, whatever the kinds have to do with one another (Bonferroni).
//!
//! - Extreme: `p <= b`.
//! - Moderate: `p <= a` in `c` windows in a row. Were windows independent, `a = b^(1/c)`. They are not:
//!   they share the baseline, and its sampling error moves all of them the same way. With a
//!   correlation `r` between windows, `a` solves `E[ P(p <= a | shared part)^c ] = b`, where
//!   `P(p <= a | z) = Phi((z_a + sqrt(r) z) / sqrt(1 - r))`, `z` standard normal and `z_a` the normal
//!   quantile of `a` (a Gaussian copula). At `r = 0` that is `b^(1/c)`, at `r = 1` it is `b`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::early_stop::significant;
use crate::monitor::statistics::null::{
    Judged, NullValues, bisect, normal_tail, normal_upper_quantile,
};

/// Resolved alerts that are kept.
const HISTORY: usize = 1000;
/// Sample ids that an alert names.
const OUTLYING: usize = 10;

/// What raises an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlertParameters {
    /// The kinds that are looked for.
    pub kinds: Vec<AlertKind>,
    /// Windows of an unchanged population, out of 1,000, that may raise an alert, over all kinds.
    pub false_alarms_per_1000_windows: f64,
    /// Windows in a row beyond the moderate level that raise an alert, and within it that end one.
    pub consecutive: usize,
    /// Collapse is only what falls to this part of its null's mean or below, besides being unlikely.
    pub collapse_ratio: f64,
    /// Mean length, over that of the run's first windows, beyond which answers have grown.
    pub length_ratio: f64,
    /// Windows that this reference is the mean of.
    pub length_windows: usize,
}

impl Default for AlertParameters {
    fn default() -> Self {
        Self {
            kinds: AlertKind::ALL.into(),
            false_alarms_per_1000_windows: 0.5,
            consecutive: 3,
            collapse_ratio: 0.5,
            length_ratio: 1.5,
            length_windows: 3,
        }
    }
}

/// A setting of `monitor.alerts` that is out of range.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("{setting}: {message}")]
pub struct AlertParametersError {
    /// The setting.
    pub setting: &'static str,
    /// What it must be.
    pub message: &'static str,
}

impl AlertParameters {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn check(&self) -> Result<(), AlertParametersError> {
        let share = |value: f64| value > 0.0 && value <= 1.0;
        for (right, setting, message) in [
            (
                self.false_alarms_per_1000_windows > 0.0
                    && self.false_alarms_per_1000_windows <= 100.0,
                "false_alarms_per_1000_windows",
                "must be above 0 and at most 100",
            ),
            ((1..=100).contains(&self.consecutive), "consecutive", "must be from 1 to 100 windows"),
            (share(self.collapse_ratio), "collapse_ratio", "must be above 0 and at most 1"),
            (
                self.length_ratio.is_finite() && self.length_ratio > 1.0,
                "length_ratio",
                "must be above 1",
            ),
            (
                (1..1 << 53).contains(&(self.length_windows as u64)),
                "length_windows",
                "must be at least 1 and below 2^53",
            ),
        ] {
            if !right {
                return Err(AlertParametersError { setting, message });
            }
        }
        Ok(())
    }
}

/// What an alert is about.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    /// The population has moved (energy distance).
    Energy,
    /// Clusters lie apart from the SFT answers (CSI per sample).
    Csi,
    /// Too many answers lie beyond where SFT answers do (MOP).
    Mop,
    /// Answers have become alike (dispersion, distinct answers).
    Collapse,
    /// Answers have become longer.
    Length,
}

impl AlertKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Energy, Self::Csi, Self::Mop, Self::Collapse, Self::Length];

    /// The name in the API, in metrics and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Energy => "energy",
            Self::Csi => "csi",
            Self::Mop => "mop",
            Self::Collapse => "collapse",
            Self::Length => "length",
        }
    }

    /// How much a healthy run has to do with it.
    pub fn severity(self) -> Severity {
        match self {
            Self::Energy | Self::Csi | Self::Length => Severity::Warning,
            Self::Mop | Self::Collapse => Severity::Critical,
        }
    }

    /// Kinds with p-values: they share the false alarms.
    fn has_null(self) -> bool {
        self != Self::Length
    }
}

/// What an alert asks for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The policy has moved, which it is trained to do: look where to.
    Warning,
    /// A sign of over-optimisation: stop or roll back unless you know better.
    Critical,
}

impl Severity {
    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// An answer that lies far from the SFT answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OutlyingSample {
    /// The request that it was scored in.
    pub request: String,
    /// Which input of that request.
    pub index: u32,
    /// Mahalanobis distance from the baseline; null where there is none.
    pub mahalanobis: Option<f64>,
    /// The reward.
    pub reward: f32,
}

/// An alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Alert {
    /// What it is about.
    pub kind: AlertKind,
    /// What it asks for.
    pub severity: Severity,
    /// The statistic that raised it, by its name in an evaluation.
    pub statistic: String,
    /// The statistic's value in the window that raised it.
    pub value: f64,
    /// Its mean where nothing has changed.
    pub null_mean: f64,
    /// Its quantile 0.95 where nothing has changed, or 0.05 where small values are suspicious; for
    /// statistics without a null, the threshold.
    pub null_quantile: f64,
    /// Probability of such a value where nothing has changed; null for statistics without a null.
    pub p: Option<f64>,
    /// The first of the windows that raised it.
    pub since_evaluation: u64,
    /// Its last step, where the caller names steps.
    pub since_step: Option<u64>,
    /// When that window was evaluated, in seconds since the Unix epoch.
    pub since: f64,
    /// When it ended; null while it lasts.
    pub resolved_at: Option<f64>,
    /// What happened, in a sentence.
    pub message: String,
    /// The most outlying answers of the window that raised it, the farthest first.
    pub samples: Vec<OutlyingSample>,
}

/// One evaluated window, as the alerts look at it.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Number of the evaluation in its run.
    pub number: u64,
    /// Last step of the window, where the caller names steps.
    pub step: Option<u64>,
    /// When it was evaluated, in seconds since the Unix epoch.
    pub at: f64,
    /// Answers in the window.
    pub samples: usize,
    /// Version of the baseline that it was compared with, if any.
    pub baseline: Option<u64>,
    /// Its statistics beside their nulls; `None` without a baseline.
    pub null: Option<&'a NullValues>,
    /// Mean length of the answers, always in the same unit.
    pub length: Option<f64>,
    /// The most outlying answers, the farthest first.
    pub outlying: &'a [OutlyingSample],
}

/// What a window changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Alerts that it raised.
    pub raised: Vec<AlertKind>,
    /// Alerts that ended with it.
    pub resolved: Vec<AlertKind>,
}

/// The alerts of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Alerts {
    parameters: AlertParameters,
    min_samples: usize,
    baseline: Option<u64>,
    trackers: Vec<Tracker>,
    /// Lengths of the run's first windows, weighted by their answers.
    reference: LengthReference,
    history: VecDeque<Alert>,
}

/// The mean length of a run's first windows.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(expecting = "struct Reference")]
struct LengthReference {
    windows: usize,
    answers: f64,
    total: f64,
}

/// One kind from window to window.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tracker {
    kind: AlertKind,
    /// The first window of those in a row that are beyond the moderate level, and their number.
    beyond: Option<(u64, Option<u64>, f64)>,
    in_a_row: usize,
    /// Windows in a row within the moderate level.
    quiet: usize,
    active: Option<Alert>,
}

/// What one window says of one kind.
struct Finding {
    statistic: &'static str,
    judged: Judged,
    level: Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Within,
    Moderate,
    Extreme,
}

impl Default for Alerts {
    fn default() -> Self {
        let parameters = AlertParameters::default();
        Self {
            trackers: trackers(&parameters),
            parameters,
            min_samples: 1,
            baseline: None,
            reference: LengthReference::default(),
            history: VecDeque::new(),
        }
    }
}

impl Alerts {
    /// A run that has no alert. Windows of fewer than `min_samples` answers are not judged.
    ///
    /// # Errors
    /// A parameter out of range.
    pub fn new(
        parameters: AlertParameters,
        min_samples: usize,
    ) -> Result<Self, AlertParametersError> {
        parameters.check()?;
        Ok(Self { trackers: trackers(&parameters), parameters, min_samples, ..Self::default() })
    }

    /// Goes on with other parameters. What is no longer looked for ends without a word.
    ///
    /// # Errors
    /// A parameter out of range; then nothing changes.
    pub fn set_parameters(
        &mut self,
        parameters: AlertParameters,
        min_samples: usize,
    ) -> Result<(), AlertParametersError> {
        parameters.check()?;
        let known = std::mem::take(&mut self.trackers);
        let mut known: Vec<Option<Tracker>> = known.into_iter().map(Some).collect();
        self.trackers = trackers(&parameters);
        for tracker in &mut self.trackers {
            let same = |known: &&mut Option<Tracker>| {
                known.as_ref().is_some_and(|known| known.kind == tracker.kind)
            };
            if let Some(known) = known.iter_mut().find(same).and_then(Option::take) {
                *tracker = known;
            }
        }
        self.parameters = parameters;
        self.min_samples = min_samples;
        Ok(())
    }

    /// Takes the next window.
    ///
    /// With another baseline everything begins anew, the reference of lengths too: alerts end, and
    /// what was in a row counts no more.
    pub fn push(&mut self, look: &Look<'_>) -> Changes {
        let mut changes = Changes::default();
        if look.baseline != self.baseline {
            self.restart(look.at, &mut changes);
            self.baseline = look.baseline;
        }
        if look.samples < self.min_samples {
            return changes;
        }
        for index in 0..self.trackers.len() {
            let kind = self.trackers[index].kind;
            let Some(finding) = self.find(kind, look) else { continue };
            let ended = self.trackers[index].take(
                &finding,
                look,
                self.parameters.consecutive,
                &mut changes,
            );
            self.remember(ended);
        }
        changes
    }

    /// The alerts that last, in the order of kinds.
    pub fn active(&self) -> impl Iterator<Item = &Alert> {
        self.trackers.iter().filter_map(|tracker| tracker.active.as_ref())
    }

    /// The alerts that ended, the last 1,000, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Alert> {
        self.history.iter()
    }

    /// Those that ended and those that last, oldest first.
    pub fn all(&self) -> Vec<Alert> {
        let mut all: Vec<Alert> = self.history().chain(self.active()).cloned().collect();
        all.sort_by_key(|alert| alert.since_evaluation);
        all
    }

    fn restart(&mut self, at: f64, changes: &mut Changes) {
        for index in 0..self.trackers.len() {
            let ended = self.trackers[index].active.take().map(|mut alert| {
                alert.resolved_at = Some(at);
                changes.resolved.push(alert.kind);
                alert
            });
            self.remember(ended);
        }
        self.trackers = trackers(&self.parameters);
        self.reference = LengthReference::default();
    }

    fn remember(&mut self, ended: Option<Alert>) {
        self.history.extend(ended);
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    fn find(&mut self, kind: AlertKind, look: &Look<'_>) -> Option<Finding> {
        if kind == AlertKind::Length {
            return self.length(look);
        }
        let null = look.null?;
        let judged = |statistic, judged: Option<Judged>, shared: f64| {
            let judged = judged?;
            Some(Finding { statistic, level: self.level(judged.p?, shared), judged })
        };
        match kind {
            // Quadratic in the sample, so that its correlation is the square.
            AlertKind::Energy => judged("energy", null.energy, null.shared * null.shared),
            AlertKind::Csi => judged("csi_per_sample", null.csi, null.shared),
            AlertKind::Mop => judged("mop", null.mop, null.shared),
            AlertKind::Collapse => {
                let fallen =
                    |judged: &Judged| judged.value <= self.parameters.collapse_ratio * judged.mean;
                let dispersion =
                    judged("dispersion_ratio", null.dispersion, null.shared).map(|finding| {
                        if fallen(&finding.judged) { finding } else { finding.within() }
                    });
                let distinct = null.distinct.map(|judged| Finding {
                    statistic: "distinct_ratio",
                    level: if fallen(&judged) { Level::Moderate } else { Level::Within },
                    judged: Judged {
                        quantile: self.parameters.collapse_ratio * judged.mean,
                        ..judged
                    },
                });
                // The first of equals.
                match (dispersion, distinct) {
                    (Some(a), Some(b)) => Some(if b.level > a.level { b } else { a }),
                    (a, b) => a.or(b),
                }
            }
            AlertKind::Length => None,
        }
    }

    fn length(&mut self, look: &Look<'_>) -> Option<Finding> {
        let value = look.length.filter(|length| length.is_finite())?;
        let reference = &mut self.reference;
        if reference.windows < self.parameters.length_windows {
            reference.windows += 1;
            reference.answers += look.samples as f64;
            reference.total += value * look.samples as f64;
            return None;
        }
        let mean = reference.total / reference.answers;
        let quantile = self.parameters.length_ratio * mean;
        let level = if value > quantile { Level::Moderate } else { Level::Within };
        let judged = Judged { value, mean, quantile, p: None };
        Some(Finding { statistic: "length", judged, level })
    }

    fn level(&self, p: f64, shared: f64) -> Level {
        let kinds = self.trackers.iter().filter(|tracker| tracker.kind.has_null()).count();
        let rate = self.parameters.false_alarms_per_1000_windows / 1000.0 / (2 * kinds) as f64;
        let consecutive = self.parameters.consecutive;
        if p <= rate {
            Level::Extreme
        } else if p > rate.powf(1.0 / consecutive as f64) {
            // Sharing lowers the level, and takes longer to reckon with.
            Level::Within
        } else if p <= moderate_level(rate, consecutive, shared) {
            Level::Moderate
        } else {
            Level::Within
        }
    }
}

/// The level that `count` windows in a row fall below at a rate of `rate`, see the [module](self).
pub fn moderate_level(rate: f64, count: usize, correlation: f64) -> f64 {
    let independent = rate.powf(1.0 / count as f64);
    if count == 1 || correlation <= 0.0 {
        return independent;
    }
    if correlation > 0.99 {
        // The sum below is too coarse for it, and the limit is on the safe side.
        return rate;
    }
    let (shared, own) = (correlation.sqrt(), (1.0 - correlation).sqrt());
    let in_a_row = |level: f64| {
        let z = normal_upper_quantile(level);
        // The trapezoid rule is exact for such integrals, all but.
        let step = 0.05;
        (-200..=200)
            .map(|i| f64::from(i) * step)
            .map(|x| {
                let given = normal_tail((z - shared * x) / own);
                (-0.5 * x * x).exp() * given.powi(count as i32)
            })
            .sum::<f64>()
            * step
            / (2.0 * std::f64::consts::PI).sqrt()
    };
    bisect(rate.ln(), independent.ln(), |level| in_a_row(level.exp()) >= rate).exp()
}

fn trackers(parameters: &AlertParameters) -> Vec<Tracker> {
    let wanted = AlertKind::ALL.into_iter().filter(|kind| parameters.kinds.contains(kind));
    wanted.map(|kind| Tracker { kind, beyond: None, in_a_row: 0, quiet: 0, active: None }).collect()
}

impl Finding {
    fn within(self) -> Self {
        Self { level: Level::Within, ..self }
    }
}

impl Tracker {
    /// Takes a window; returns the alert that ended with it.
    fn take(
        &mut self,
        finding: &Finding,
        look: &Look<'_>,
        consecutive: usize,
        changes: &mut Changes,
    ) -> Option<Alert> {
        if finding.level == Level::Within {
            self.beyond = None;
            self.in_a_row = 0;
            self.quiet += 1;
            if self.quiet < consecutive {
                return None;
            }
            let mut ended = self.active.take()?;
            ended.resolved_at = Some(look.at);
            changes.resolved.push(self.kind);
            return Some(ended);
        }
        self.quiet = 0;
        self.in_a_row += 1;
        let since = *self.beyond.get_or_insert((look.number, look.step, look.at));
        if self.active.is_none()
            && (finding.level == Level::Extreme || self.in_a_row >= consecutive)
        {
            changes.raised.push(self.kind);
            self.active = Some(self.alert(finding, since, look));
        }
        None
    }

    fn alert(
        &self,
        finding: &Finding,
        (since_evaluation, since_step, since): (u64, Option<u64>, f64),
        look: &Look<'_>,
    ) -> Alert {
        let Judged { value, mean, quantile, p } = finding.judged;
        Alert {
            kind: self.kind,
            severity: self.kind.severity(),
            statistic: finding.statistic.to_owned(),
            value,
            null_mean: mean,
            null_quantile: quantile,
            p,
            since_evaluation,
            since_step,
            since,
            resolved_at: None,
            message: message(finding, self.in_a_row),
            samples: look.outlying.iter().take(OUTLYING).cloned().collect(),
        }
    }
}

fn message(finding: &Finding, in_a_row: usize) -> String {
    let Judged { value, mean, quantile, p } = finding.judged;
    let value = significant(value);
    let beside = match p {
        Some(p) => {
            let side = match finding.statistic {
                "dispersion_ratio" => "above",
                _ => "below",
            };
            format!(
                "SFT answers give {} on the average, 95 % of the time {side} {}; p = {}",
                significant(mean),
                significant(quantile),
                significant(p)
            )
        }
        None => format!("usual are {}, the limit is {}", significant(mean), significant(quantile)),
    };
    let meaning = match finding.statistic {
        "energy" => {
            format!("the answers as a whole have left the SFT answers: energy distance {value}")
        }
        "csi_per_sample" => {
            format!("answers lie apart from the SFT answers: CSI per sample {value}")
        }
        "mop" => format!("too many answers lie where SFT answers hardly do: share {value}"),
        "dispersion_ratio" => {
            format!("the answers have become alike: dispersion {value} of the SFT answers'")
        }
        "distinct_ratio" => format!("the answers repeat: {value} of them are distinct"),
        _ => format!("the answers have grown: mean length {value}"),
    };
    let windows =
        if in_a_row > 1 { format!(", {in_a_row} windows in a row") } else { String::new() };
    format!("{meaning} ({beside}){windows}")
}
