//! An evaluation as figures: calibration, margins, and the KL divergence by dimension.

use std::path::Path;

use super::diagnostics::LatentDiagnostics;
use super::report::{CalibrationBin, PairEvaluation};
use super::scorer::wilson_interval;
use crate::plots::{Bars, Figure, FigurePanel, FigurePoint, Series, Size};

impl PairEvaluation {
    /// Draws `calibration.svg`, `margins.svg` and, for an InfoRM head, `kl.svg` of the checkpoint called `model` into a folder,
    /// which is made where it is missing.
    ///
    /// # Errors
    /// A figure that cannot be drawn, a folder or file that cannot be written.
    pub fn plot(&self, model: &str, folder: &Path) -> anyhow::Result<()> {
        let kl = self.latents.as_ref().map(|latents| ("kl", divergences(model, latents)));
        let figures = [("calibration", self.curve(model)), ("margins", self.histogram(model))];
        for (name, figure) in figures.into_iter().chain(kl) {
            figure.draw(Size::CURVE)?.save(folder, name)?;
        }
        Ok(())
    }

    fn curve(&self, model: &str) -> Figure {
        let point = |bin: &CalibrationBin| {
            let correct = (bin.accuracy * bin.pairs as f64).round() as usize;
            let interval = Some(wilson_interval(correct, bin.pairs));
            FigurePoint { x: bin.confidence, y: bin.accuracy, interval }
        };
        let points = self.calibration.iter().map(point).collect();
        Figure {
            title: format!("Calibration of {model}"),
            note: "How often the model is right, against how sure it is; with 95 % intervals."
                .to_owned(),
            axis: "probability of the answer that it prefers".to_owned(),
            panels: vec![FigurePanel {
                axis: "share of pairs".to_owned(),
                series: vec![Series { name: "prefers the chosen answer".to_owned(), points }],
                reference: Some(("as often as it is sure".to_owned(), [(0.5, 0.5), (1.0, 1.0)])),
                shown: vec![0.0, 1.0],
                bounds: (0.0, 1.0),
                ..FigurePanel::default()
            }],
            empty: "There are no pairs.".to_owned(),
            ..Figure::default()
        }
    }

    fn histogram(&self, model: &str) -> Figure {
        let bars: Vec<_> =
            self.margins.iter().map(|bin| (bin.from, bin.to, bin.pairs as f64)).collect();
        let most = bars.iter().map(|&(.., height)| height).fold(0.0, f64::max);
        Figure {
            title: format!("Margins of {model}"),
            note: "Reward of the chosen answer less that of the rejected one.".to_owned(),
            axis: "reward of the chosen answer less that of the rejected one".to_owned(),
            panels: vec![FigurePanel {
                axis: "pairs".to_owned(),
                bars: vec![Bars { name: "pairs".to_owned(), bars }],
                reference: Some(("no difference".to_owned(), [(0.0, 0.0), (0.0, most)])),
                bounds: (0.0, f64::INFINITY),
                ..FigurePanel::default()
            }],
            empty: "There are no pairs.".to_owned(),
            ..Figure::default()
        }
    }
}

/// The dimensions from the largest KL divergence to the smallest.
fn divergences(model: &str, latents: &LatentDiagnostics) -> Figure {
    let bars = |active: bool| {
        let ranked = latents.largest().into_iter().enumerate();
        let bars = ranked.filter(|(_, (unit, _))| latents.is_active(*unit) == active);
        bars.map(|(rank, (_, kl))| (rank as f64 + 0.5, rank as f64 + 1.5, kl)).collect()
    };
    Figure {
        title: format!("KL divergence by dimension of {model}"),
        note: format!("{latents}."),
        axis: "dimensions, the largest first".to_owned(),
        panels: vec![FigurePanel {
            axis: "KL divergence, nats".to_owned(),
            bars: vec![
                Bars { name: "active".to_owned(), bars: bars(true) },
                Bars { name: "not active".to_owned(), bars: bars(false) },
            ],
            bounds: (0.0, f64::INFINITY),
            ..FigurePanel::default()
        }],
        empty: "There are no latents.".to_owned(),
        ..Figure::default()
    }
}
