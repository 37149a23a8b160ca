//! `trainer eval`: pair accuracy overall and in parts, calibration and margins, of any number of checkpoints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::diagnostics::LatentDiagnostics;
use super::scorer::{PairAccuracy, TextScorer};
use crate::model::Score;
use crate::train::data::EncodedPair;

/// Bins of the calibration curve, over confidences from 0.5 to 1.
const CONFIDENCE_BINS: usize = 10;
/// Bins of the margins' histogram.
const MARGIN_BINS: usize = 20;

/// What a checkpoint says of preference pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairEvaluation {
    /// Of all pairs.
    #[serde(flatten)]
    pub all: PairAccuracy,
    /// Of the pairs of each `subset` that the data names.
    pub subsets: BTreeMap<String, PairAccuracy>,
    /// Of the pairs whose chosen text has fewer tokens: a model that likes length is wrong on these.
    pub shorter_chosen: PairAccuracy,
    /// Of the pairs whose chosen text has more tokens.
    pub longer_chosen: PairAccuracy,
    /// How sure the model is, against how often it is right. Empty bins are left out.
    pub calibration: Vec<CalibrationBin>,
    /// Mean over the pairs of `|accuracy - confidence|` of their bin (Naeini et al. 2015).
    pub calibration_error: f64,
    /// Histogram of `r_w - r_l`.
    pub margins: Vec<MarginBin>,
    /// What the latents of both answers carry; absent for a standard head.
    #[serde(default)]
    pub latents: Option<LatentDiagnostics>,
}

/// Pairs of which the model is about as sure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CalibrationBin {
    /// Mean of `sigmoid(|r_w - r_l|)`, the probability (Bradley and Terry 1952) of the answer that it prefers.
    pub confidence: f64,
    /// Share of pairs whose chosen answer it prefers.
    pub accuracy: f64,
    /// Pairs.
    pub pairs: usize,
}

/// Pairs whose margin is from `from` to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MarginBin {
    /// Lower end, included.
    pub from: f64,
    /// Upper end, excluded but for the last bin.
    pub to: f64,
    /// Pairs.
    pub pairs: usize,
}

impl PairEvaluation {
    /// Scores both texts of each pair.
    ///
    /// # Errors
    /// As [`TextScorer::scores`].
    pub fn of(scorer: &mut TextScorer, pairs: &[EncodedPair]) -> anyhow::Result<Self> {
        Ok(Self::from_scores(pairs, &scorer.pair_scores(pairs)?))
    }

    /// `scores`: of each pair's chosen and rejected text, one after the other.
    pub(in crate::train) fn from_scores(pairs: &[EncodedPair], scores: &[Score]) -> Self {
        let rewards: Vec<f64> = scores.iter().map(|score| f64::from(score.reward)).collect();
        Self { latents: LatentDiagnostics::of(scores), ..Self::from_rewards(pairs, &rewards) }
    }

    /// Of rewards alone, in the same order.
    fn from_rewards(pairs: &[EncodedPair], rewards: &[f64]) -> Self {
        let rows = || pairs.iter().zip(rewards.chunks_exact(2));
        let of = |keep: &dyn Fn(&EncodedPair) -> bool| {
            let kept = rows().filter(|(pair, _)| keep(pair));
            PairAccuracy::of(&kept.flat_map(|(_, rewards)| rewards).copied().collect::<Vec<_>>())
        };
        let mut names: Vec<&String> =
            pairs.iter().filter_map(|pair| pair.subset.as_ref()).collect();
        names.sort_unstable();
        names.dedup();
        let subset = |name: &&String| {
            ((*name).clone(), of(&|pair: &EncodedPair| pair.subset.as_ref() == Some(*name)))
        };
        let margins: Vec<f64> = rewards.chunks_exact(2).map(|pair| pair[0] - pair[1]).collect();
        let (calibration, calibration_error) = calibration(&margins);
        Self {
            all: PairAccuracy::of(rewards),
            subsets: names.iter().map(subset).collect(),
            shorter_chosen: of(&|pair| pair.chosen.len() < pair.rejected.len()),
            longer_chosen: of(&|pair| pair.chosen.len() > pair.rejected.len()),
            calibration,
            calibration_error,
            margins: histogram(&margins),
            latents: None,
        }
    }

    /// Names of the parts, and what came of each.
    pub(in crate::train) fn parts(&self) -> impl Iterator<Item = (String, &PairAccuracy)> {
        let subsets = self.subsets.iter().map(|(name, accuracy)| (name.clone(), accuracy));
        let lengths =
            [("chosen shorter", &self.shorter_chosen), ("chosen longer", &self.longer_chosen)];
        std::iter::once(("all".to_owned(), &self.all))
            .chain(subsets)
            .chain(lengths.map(|(name, accuracy)| (name.to_owned(), accuracy)))
    }
}

fn calibration(margins: &[f64]) -> (Vec<CalibrationBin>, f64) {
    let confidence = |margin: f64| 1.0 / (1.0 + (-margin.abs()).exp());
    let bin = |margin: f64| {
        let place = (confidence(margin) - 0.5) * 2.0 * CONFIDENCE_BINS as f64;
        (place as usize).min(CONFIDENCE_BINS - 1)
    };
    let bins = (0..CONFIDENCE_BINS).filter_map(|index| {
        let own: Vec<f64> =
            margins.iter().copied().filter(|&margin| bin(margin) == index).collect();
        let count = own.len() as f64;
        (!own.is_empty()).then(|| CalibrationBin {
            confidence: own.iter().map(|&margin| confidence(margin)).sum::<f64>() / count,
            accuracy: own.iter().filter(|margin| **margin > 0.0).count() as f64 / count,
            pairs: own.len(),
        })
    });
    let bins: Vec<CalibrationBin> = bins.collect();
    let error = |bin: &CalibrationBin| bin.pairs as f64 * (bin.accuracy - bin.confidence).abs();
    let total: f64 = bins.iter().map(error).sum();
    (bins, total / margins.len().max(1) as f64)
}

/// Bins of one width from the least to the greatest finite margin.
fn histogram(margins: &[f64]) -> Vec<MarginBin> {
    let finite = || margins.iter().copied().filter(|margin| margin.is_finite());
    let (least, most) =
        (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    if least > most {
        return Vec::new();
    }
    let width = ((most - least) / MARGIN_BINS as f64).max(f64::MIN_POSITIVE);
    let mut bins: Vec<MarginBin> = (0..MARGIN_BINS)
        .map(|index| {
            let from = least + index as f64 * width;
            MarginBin { from, to: from + width, pairs: 0 }
        })
        .collect();
    for margin in finite() {
        bins[(((margin - least) / width) as usize).min(MARGIN_BINS - 1)].pairs += 1;
    }
    bins
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::train::{Origin, side_by_side};

    fn pair(chosen: usize, rejected: usize, subset: Option<&str>) -> EncodedPair {
        let subset = subset.map(str::to_owned);
        EncodedPair {
            chosen: vec![1; chosen],
            rejected: vec![2; rejected],
            prompt: 0,
            subset,
            margin: None,
            origin: Origin { file: Path::new("pairs.jsonl").into(), line: 1 },
        }
    }

    #[test]
    fn parts_calibration_and_margins_are_of_their_pairs() {
        let pairs = [
            pair(3, 5, Some("easy")),
            pair(5, 3, Some("hard")),
            pair(4, 4, Some("hard")),
            pair(2, 9, None),
        ];
        // Margins 2, -1, 0.1, -4.
        let rewards = [2.0, 0.0, 0.0, 1.0, 0.1, 0.0, -4.0, 0.0];
        let found = PairEvaluation::from_rewards(&pairs, &rewards);
        let counts = |accuracy: &PairAccuracy| (accuracy.correct, accuracy.pairs);
        assert_eq!(counts(&found.all), (2, 4));
        assert_eq!(counts(&found.subsets["easy"]), (1, 1));
        assert_eq!(counts(&found.subsets["hard"]), (1, 2));
        assert_eq!(found.subsets.len(), 2);
        assert_eq!(counts(&found.shorter_chosen), (1, 2));
        assert_eq!(counts(&found.longer_chosen), (0, 1));
        // Confidences 0.881, 0.731, 0.525 and 0.982: bins 7, 4, 0 and 9.
        let bins: Vec<(f64, usize)> =
            found.calibration.iter().map(|b| (b.accuracy, b.pairs)).collect();
        assert_eq!(bins, [(1.0, 1), (0.0, 1), (1.0, 1), (0.0, 1)]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let error = (1.0 - sigmoid(0.1) + sigmoid(1.0) + 1.0 - sigmoid(2.0) + sigmoid(4.0)) / 4.0;
        assert!((found.calibration_error - error).abs() < 1e-12);
        assert_eq!(found.margins.iter().map(|bin| bin.pairs).sum::<usize>(), 4);
        assert_eq!((found.margins[0].from, found.margins[0].pairs), (-4.0, 1));
        assert_eq!(found.margins[MARGIN_BINS - 1].pairs, 1);

        let table = side_by_side(&[("a".to_owned(), found.clone()), ("b".to_owned(), found)]);
        let row = "| hard | 2 | 0.500 (0.095 to 0.905) | 0.500 (0.095 to 0.905) |";
        assert!(table.contains(row), "{table}");
    }

    #[test]
    fn nothing_to_evaluate_is_no_number() {
        let found = PairEvaluation::from_rewards(&[], &[]);
        assert_eq!((found.all.pairs, found.calibration.len(), found.margins.len()), (0, 0, 0));
        assert!(side_by_side(&[("a".to_owned(), found)]).contains("| all | 0 | |"));
    }
}
