//! Which statistics are drawn together, and what is said of them.

use std::fmt::Write as _;

use super::chart::{Band, Chart, CurvePanel, Line, Stroke};
use super::document::Drawing;
use super::error::PlotError;
use super::number::short;
use super::palette::Ink;
use super::size::Size;
use crate::monitor::alerts::AlertKind;
use crate::monitor::statistics::rewards::Quantiles;
use crate::monitor::{Evaluation, RunView};

/// A plot of statistics over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// CSI per sample and its null.
    Csi,
    /// Change of CSI over its usual change, against the limit of the early stop.
    Ratio,
    /// Energy distance and its null.
    Energy,
    /// Mahalanobis outlier probability and its null.
    Mop,
    /// Mean reward and its quantiles.
    Rewards,
    /// Mean length, and its rank correlation with the reward.
    Length,
    /// Dispersion against the baseline's, and the share of distinct answers.
    Dispersion,
}

/// The evaluations of a run.
#[derive(Debug, Clone, Default)]
pub struct RunCurves {
    /// The run's name.
    pub run: String,
    /// Its evaluations, the oldest first.
    pub rows: Vec<Evaluation>,
    /// Number of the evaluation that first said stop.
    pub stopped_at: Option<u64>,
    /// `max_ratio` of the early stop.
    pub max_ratio: f64,
}

impl Curve {
    /// All of them, in the order in which they are read.
    pub const ALL: [Self; 7] = [
        Self::Csi,
        Self::Energy,
        Self::Mop,
        Self::Ratio,
        Self::Rewards,
        Self::Length,
        Self::Dispersion,
    ];

    /// Its name in URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Csi => "csi",
            Self::Ratio => "ratio",
            Self::Energy => "energy",
            Self::Mop => "mop",
            Self::Rewards => "rewards",
            Self::Length => "length",
            Self::Dispersion => "dispersion",
        }
    }

    /// Its title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Csi => "CSI per sample",
            Self::Ratio => "CSI change ratio",
            Self::Energy => "Energy distance",
            Self::Mop => "Outliers (MOP)",
            Self::Rewards => "Rewards",
            Self::Length => "Length and reward",
            Self::Dispersion => "Dispersion",
        }
    }

    /// What it tells.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Csi => {
                "Cluster Separation Index: how far clusters of answers lie from the SFT answers."
            }
            Self::Ratio => {
                "Change of CSI over its usual change. Beyond the limit training should stop."
            }
            Self::Energy => "Distance of the window's distribution from the SFT answers'.",
            Self::Mop => "Share of answers beyond the SFT answers' Mahalanobis quantile.",
            Self::Rewards => "Mean, with the middle half and the middle 90 % of the rewards.",
            Self::Length => "Mean tokens; below, rank correlation of reward with length.",
            Self::Dispersion => "1 is as spread as SFT answers; towards 0 the policy collapses.",
        }
    }

    /// The alert that this statistic raises; the other plots mark all.
    fn alert(self) -> Option<AlertKind> {
        match self {
            Self::Csi => Some(AlertKind::Csi),
            Self::Energy => Some(AlertKind::Energy),
            Self::Mop => Some(AlertKind::Mop),
            Self::Dispersion => Some(AlertKind::Collapse),
            Self::Length => Some(AlertKind::Length),
            Self::Ratio | Self::Rewards => None,
        }
    }

    fn alerted(self, row: &Evaluation) -> bool {
        match self.alert() {
            Some(kind) => row.alerts.contains(&kind),
            None => !row.alerts.is_empty(),
        }
    }
}

impl RunCurves {
    /// The curves of a run, of which `rows` are the evaluations.
    pub fn of(run: &RunView, rows: Vec<Evaluation>) -> Self {
        Self {
            run: run.id.clone(),
            rows,
            stopped_at: run.stopped_at.as_ref().map(|row| row.number),
            max_ratio: run.config.early_stop.max_ratio,
        }
    }

    /// Draws a plot, with its title in it or without.
    ///
    /// # Errors
    /// Where plotters cannot draw.
    pub fn draw(&self, curve: Curve, size: Size, titled: bool) -> Result<Drawing, PlotError> {
        let (axis, x) = self.horizontal();
        let panels = self.panels(curve);
        let description = self.describe(curve, axis, &x, &panels);
        let stop = self.stopped_at;
        let empty = match self.rows.last() {
            None => "No window was evaluated yet.".to_owned(),
            Some(row) => {
                row.reason.clone().unwrap_or_else(|| "Nothing could be computed.".to_owned())
            }
        };
        let chart = Chart {
            title: format!("{} of {}", curve.title(), self.run),
            description,
            axis,
            x,
            alerts: self.rows.iter().map(|row| curve.alerted(row)).collect(),
            stop: stop.and_then(|stop| self.rows.iter().position(|row| row.number == stop)),
            panels,
            empty,
        };
        chart.draw(size, titled)
    }

    /// Steps where every window has a later one than the window before, else numbers of evaluations.
    fn horizontal(&self) -> (&'static str, Vec<f64>) {
        let steps: Option<Vec<u64>> = self.rows.iter().map(|row| row.last_step).collect();
        match steps.filter(|steps| steps.is_sorted_by(|a, b| a < b)) {
            Some(steps) if !steps.is_empty() => ("step", steps.iter().map(|&s| s as f64).collect()),
            _ => ("evaluation", self.rows.iter().map(|row| row.number as f64).collect()),
        }
    }

    fn values(&self, value: impl Fn(&Evaluation) -> Option<f64>) -> Vec<Option<f64>> {
        self.rows.iter().map(|row| value(row).filter(|value| value.is_finite())).collect()
    }

    fn line(&self, name: &str, ink: Ink, value: impl Fn(&Evaluation) -> Option<f64>) -> Line {
        Line { name: name.to_owned(), ink, values: self.values(value), stroke: Stroke::Plain }
    }

    /// A statistic that is never negative, and the 95 % quantile of what it is on unchanged answers.
    fn against_null(
        &self,
        name: &str,
        value: impl Fn(&Evaluation) -> Option<f64>,
        null: impl Fn(&Evaluation) -> Option<f64>,
    ) -> CurvePanel {
        let null = self.line("null, 95 %", Ink::Null, null);
        let mut lines = vec![self.line(name, Ink::First, value)];
        lines.extend(Some(null).filter(|null| null.values.iter().any(Option::is_some)));
        CurvePanel {
            lines,
            shown: vec![0.0],
            bounds: Some((0.0, f64::INFINITY)),
            ..CurvePanel::default()
        }
    }

    fn panels(&self, curve: Curve) -> Vec<CurvePanel> {
        match curve {
            Curve::Csi => vec![self.against_null(
                "CSI per sample",
                |row| row.statistics.csi_per_sample,
                |row| row.csi_null_p95,
            )],
            Curve::Energy => vec![self.against_null(
                "energy distance",
                |row| row.statistics.energy,
                |row| row.energy_null_p95,
            )],
            Curve::Mop => {
                let panel = self.against_null(
                    "share of outliers",
                    |row| row.statistics.mop,
                    |row| row.mop_null_p95,
                );
                vec![CurvePanel { bounds: Some((0.0, 1.0)), ..panel }]
            }
            Curve::Ratio => vec![CurvePanel {
                lines: vec![
                    self.line("change over usual change", Ink::First, |row| row.csi_ratio),
                    self.line("limit", Ink::Null, |_| Some(self.max_ratio)),
                ],
                shown: vec![0.0],
                bounds: Some((0.0, f64::INFINITY)),
                ..CurvePanel::default()
            }],
            Curve::Rewards => vec![CurvePanel {
                lines: vec![
                    self.line("mean reward", Ink::First, |row| Some(row.statistics.reward_mean)),
                ],
                bands: vec![
                    self.quantiles("5 to 95 %", 0.13, |q| (q.p05, q.p95)),
                    self.quantiles("25 to 75 %", 0.22, |q| (q.p25, q.p75)),
                ],
                ..CurvePanel::default()
            }],
            Curve::Length => {
                vec![
                    CurvePanel {
                        lines: vec![self.line("mean tokens", Ink::Second, |row| {
                            Some(row.statistics.tokens_mean)
                        })],
                        shown: vec![0.0],
                        bounds: Some((0.0, f64::INFINITY)),
                        ..CurvePanel::default()
                    },
                    CurvePanel {
                        lines: vec![self.line(
                            "reward to length, rank correlation",
                            Ink::First,
                            |row| row.statistics.reward_length_rho,
                        )],
                        level: Some(0.0),
                        shown: vec![-1.0, 1.0],
                        bounds: Some((-1.0, 1.0)),
                        ..CurvePanel::default()
                    },
                ]
            }
            Curve::Dispersion => vec![CurvePanel {
                lines: vec![
                    self.line("spread over SFT's", Ink::First, |row| {
                        row.statistics.dispersion_ratio
                    }),
                    self.line("distinct answers", Ink::Second, |row| row.statistics.distinct_ratio),
                ],
                level: Some(1.0),
                shown: vec![0.0],
                bounds: Some((0.0, f64::INFINITY)),
                ..CurvePanel::default()
            }],
        }
    }

    fn quantiles(&self, name: &str, opacity: f64, value: impl Fn(Quantiles) -> (f64, f64)) -> Band {
        let quantiles = |row: &Evaluation| row.statistics.reward_quantiles.map(&value);
        Band {
            name: name.to_owned(),
            ink: Ink::First,
            opacity,
            low: self.values(|row| Some(quantiles(row)?.0)),
            high: self.values(|row| Some(quantiles(row)?.1)),
            stroke: Stroke::Plain,
        }
    }

    /// The numbers in words.
    fn describe(&self, curve: Curve, axis: &str, x: &[f64], panels: &[CurvePanel]) -> String {
        let mut words = curve.meaning().to_owned();
        let (Some(first), Some(last)) = (x.first(), x.last()) else {
            words.push_str(" No window was evaluated yet.");
            return words;
        };
        // Writing to a string cannot fail.
        let _ = write!(words, " {} evaluations, {axis} {first} to {last}.", x.len());
        for line in panels.iter().flat_map(|panel| &panel.lines) {
            let known = || line.values.iter().flatten();
            let Some(newest) = known().next_back() else { continue };
            let low = known().copied().fold(f64::INFINITY, f64::min);
            let high = known().copied().fold(f64::NEG_INFINITY, f64::max);
            let _ = write!(
                words,
                " {}: last {}, least {}, greatest {}.",
                line.name,
                short(*newest),
                short(low),
                short(high)
            );
        }
        let alerted = self.rows.iter().filter(|row| curve.alerted(row)).count();
        if alerted > 0 {
            let now = self.rows.last().is_some_and(|row| curve.alerted(row));
            let state = if now { "active now" } else { "not active now" };
            let _ = write!(words, " An alert was active at {alerted} of them, and is {state}.");
        }
        if let Some(stop) = self.rows.iter().find(|row| Some(row.number) == self.stopped_at) {
            let at = stop.last_step.map_or_else(
                || format!("evaluation {}", stop.number),
                |step| format!("step {step}"),
            );
            let _ = write!(words, " Early stop was said at {at}.");
        }
        words
    }
}
