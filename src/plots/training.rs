//! Curves of a training over its steps, from its log.

use std::fmt::Write as _;

use serde::Deserialize;

use super::chart::{Band, Chart, CurvePanel, Line, Stroke};
use super::document::Drawing;
use super::error::PlotError;
use super::number::short;
use super::palette::Ink;
use super::size::Size;

/// A curve has so many windows of steps, each with a mean of its own...
const WINDOWS: usize = 25;
/// ... of at most so many steps.
const MAX_WINDOW: usize = 200;

/// A step of a training, as its log has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs)]
pub struct TrainingStep {
    /// Steps before it.
    pub step: u64,
    pub loss: Option<f64>,
    pub preference: Option<f64>,
    pub kl: Option<f64>,
    pub accuracy: Option<f64>,
    pub margin: Option<f64>,
    pub active_dimensions: Option<f64>,
}

/// An evaluation on held-out pairs, as the log has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs)]
pub struct TrainingEvaluation {
    pub accuracy: Option<f64>,
    pub interval: Option<(f64, f64)>,
    pub margin_mean: Option<f64>,
}

/// A training so far.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainingCurves {
    /// What it is called.
    pub training: String,
    /// Its steps, in their order.
    pub steps: Vec<TrainingStep>,
    /// Its evaluations, and how many steps were taken before each.
    pub evaluations: Vec<(u64, TrainingEvaluation)>,
}

/// A plot of a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainingCurve {
    /// What is minimised, and the preference loss in it.
    Loss,
    /// Share of pairs ranked right, while training and held out.
    Accuracy,
    /// KL divergence of the bottleneck.
    Kl,
    /// Mean reward margin, while training and held out.
    Margin,
    /// Latent dimensions that tell texts apart.
    ActiveDimensions,
}

impl TrainingCurve {
    /// All of them, in the order in which they are read.
    pub const ALL: [Self; 5] =
        [Self::Loss, Self::Accuracy, Self::Kl, Self::Margin, Self::ActiveDimensions];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::Kl => "kl",
            Self::Margin => "margin",
            Self::ActiveDimensions => "active_dimensions",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Loss => "Loss",
            Self::Accuracy => "Pair accuracy",
            Self::Kl => "KL divergence (nats)",
            Self::Margin => "Reward margin",
            Self::ActiveDimensions => "Active latent dimensions",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Loss => {
                "What is minimised. A model that cannot tell answers apart has a preference loss of ln 2."
            }
            Self::Accuracy => "Share of pairs ranked right.",
            Self::Kl => "What the latents carry of the texts, as the loss reduces it.",
            Self::Margin => "Mean of chosen minus rejected reward.",
            Self::ActiveDimensions => {
                "Dimensions whose posterior mean has a variance above 0.01 over a batch's answers."
            }
        }
    }

    fn of_step(self, step: &TrainingStep) -> Option<f64> {
        match self {
            Self::Loss => step.loss,
            Self::Accuracy => step.accuracy,
            // A standard head has neither; the log gives it a divergence of 0.
            Self::Kl => step.active_dimensions.and(step.kl),
            Self::Margin => step.margin,
            Self::ActiveDimensions => step.active_dimensions,
        }
    }
}

impl TrainingCurves {
    /// Draws a plot, with its title in it; `None` where no step has its value.
    ///
    /// # Errors
    /// Where plotters cannot draw.
    pub fn draw(&self, curve: TrainingCurve, size: Size) -> Result<Option<Drawing>, PlotError> {
        let batches: Vec<Option<f64>> = self.steps.iter().map(|step| curve.of_step(step)).collect();
        if batches.iter().all(Option::is_none) {
            return Ok(None);
        }
        let panel = self.panel(curve, batches);
        let x: Vec<f64> = self.steps.iter().map(|step| (step.step + 1) as f64).collect();
        let chart = Chart {
            title: format!("{} of {}", curve.title(), self.training),
            description: describe(curve, &x, &panel),
            axis: "step",
            alerts: vec![false; x.len()],
            x,
            stop: None,
            panels: vec![panel],
            empty: String::new(),
        };
        chart.draw(size, true).map(Some)
    }

    fn panel(&self, curve: TrainingCurve, batches: Vec<Option<f64>>) -> CurvePanel {
        let window = batches.len().div_ceil(WINDOWS).min(MAX_WINDOW);
        let mean = |name: &str, ink: Ink, values: &[Option<f64>]| Line {
            name: if window > 1 {
                format!("{name}, mean of {window} steps")
            } else {
                name.to_owned()
            },
            ink,
            values: means(values, window),
            stroke: Stroke::Plain,
        };
        let reference = |name: &str, value: f64| Line {
            name: name.to_owned(),
            ink: Ink::Null,
            values: vec![Some(value); batches.len()],
            stroke: Stroke::Plain,
        };
        let held_out = |value: &dyn Fn(&TrainingEvaluation) -> Option<f64>| Line {
            name: "held out".to_owned(),
            ink: Ink::Alert,
            values: self.at_evaluations(value),
            stroke: Stroke::Sparse,
        };
        let name = match curve {
            TrainingCurve::Accuracy | TrainingCurve::Margin => "training",
            TrainingCurve::Loss => "loss",
            TrainingCurve::Kl => "KL divergence",
            TrainingCurve::ActiveDimensions => "active dimensions",
        };
        let mut lines = vec![mean(name, Ink::First, &batches)];
        let mut panel = CurvePanel::default();
        match curve {
            TrainingCurve::Loss => {
                // Of a standard head it is all of the loss.
                if self.steps.iter().any(|step| step.active_dimensions.is_some()) {
                    let preference: Vec<Option<f64>> =
                        self.steps.iter().map(|step| step.preference).collect();
                    lines.push(mean("preference loss", Ink::Second, &preference));
                }
                lines.push(reference("ln 2", std::f64::consts::LN_2));
                panel.shown = vec![0.0];
                panel.bounds = Some((0.0, f64::INFINITY));
            }
            TrainingCurve::Accuracy => {
                let interval = |end: fn((f64, f64)) -> f64| {
                    self.at_evaluations(&|evaluation| evaluation.interval.map(end))
                };
                lines.push(held_out(&|evaluation| evaluation.accuracy));
                panel.bands.push(Band {
                    name: "95 % interval".to_owned(),
                    ink: Ink::Alert,
                    opacity: 0.15,
                    low: interval(|ends| ends.0),
                    high: interval(|ends| ends.1),
                    stroke: Stroke::Sparse,
                });
                lines.push(reference("chance", 0.5));
                panel.bounds = Some((0.0, 1.0));
            }
            TrainingCurve::Margin => {
                lines.push(held_out(&|evaluation| evaluation.margin_mean));
                panel.level = Some(0.0);
            }
            TrainingCurve::Kl | TrainingCurve::ActiveDimensions => {
                panel.shown = vec![0.0];
                panel.bounds = Some((0.0, f64::INFINITY));
            }
        }
        lines.retain(|line| line.values.iter().any(Option::is_some));
        panel.bands.retain(|band| band.low.iter().any(Option::is_some));
        if window > 1 {
            let (name, ink) = ("one batch".to_owned(), Ink::First);
            lines.insert(0, Line { name, ink, values: batches, stroke: Stroke::Pale });
        }
        CurvePanel { lines, ..panel }
    }

    /// A value of the evaluations, at the steps that they come after.
    fn at_evaluations(
        &self,
        value: &dyn Fn(&TrainingEvaluation) -> Option<f64>,
    ) -> Vec<Option<f64>> {
        let mut values = vec![None; self.steps.len()];
        for (taken, evaluation) in &self.evaluations {
            if let Ok(at) = self.steps.binary_search_by_key(taken, |step| step.step + 1) {
                values[at] = value(evaluation);
            }
        }
        values
    }
}

/// At each place the mean of what is known at the last `window` ones.
fn means(values: &[Option<f64>], window: usize) -> Vec<Option<f64>> {
    (1..=values.len())
        .map(|end| {
            let known = values[end.saturating_sub(window)..end].iter().flatten();
            let count = known.clone().count();
            (count > 0).then(|| known.sum::<f64>() / count as f64)
        })
        .collect()
}

/// The numbers in words.
fn describe(curve: TrainingCurve, x: &[f64], panel: &CurvePanel) -> String {
    let mut words = format!("{} {} steps.", curve.meaning(), x.len());
    let told = |line: &&Line| line.stroke != Stroke::Pale && line.ink != Ink::Null;
    for line in panel.lines.iter().filter(told) {
        let known = || line.values.iter().flatten();
        if let (Some(first), Some(last)) = (known().next(), known().next_back()) {
            // Writing to a string cannot fail.
            let _ =
                write!(words, " {}: first {}, last {}.", line.name, short(*first), short(*last));
        }
    }
    words
}
