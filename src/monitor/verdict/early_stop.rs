//! Early stopping on the rate at which CSI changes.
//!
//! Appendix G and Algorithm 1 of InfoRM (NeurIPS 2024), with its undefined cases settled.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Fewest earlier changes whose mean is taken for the usual change.
const MIN_CHANGES: usize = 2;

/// Part of CSI, or of the absolute floor, below which a change is rounding: CSI depends on the order
/// of the answers by its last bits.
const ROUNDING: f64 = 1e-9;

/// When a change of CSI is too large.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStopParameters {
    /// Largest tolerable ratio of a change to the mean of the changes before it (the paper's
    /// `epsilon_max`).
    #[schema(exclusive_minimum = 0)]
    pub max_ratio: f64,
    /// Largest tolerable change, in units of the index that is pushed, where that mean is zero and
    /// the ratio infinite.
    ///
    /// The monitor pushes CSI per sample. The default of 0.01 is what 2 % of a window add to it when
    /// they move by the default `eps` of [`CsiParameters`](super::statistics::csi::CsiParameters), 0.5.
    #[schema(minimum = 0)]
    pub absolute_floor: f64,
}

impl Default for EarlyStopParameters {
    fn default() -> Self {
        Self { max_ratio: 10.0, absolute_floor: 0.01 }
    }
}

/// Why there is no [`EarlyStop`].
#[derive(Clone, Debug, PartialEq, Error)]
pub enum EarlyStopError {
    /// `max_ratio` is zero, negative, infinite or NaN.
    #[error("max_ratio must be positive and finite, not {0}")]
    MaxRatio(f64),
    /// `absolute_floor` is negative, infinite or NaN.
    #[error("absolute_floor must be finite and not negative, not {0}")]
    AbsoluteFloor(f64),
}

/// The early-stopping rule over the CSI per sample of one training run, `C_0, C_1, ...`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EarlyStop {
    parameters: EarlyStopParameters,
    previous: Option<f64>,
    changes: usize,
    sum_of_changes: f64,
}

/// What one evaluation says; it does not look at what earlier ones said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EarlyStopVerdict {
    /// `|C_t - C_(t-1)|`, in units of CSI; absent for the first evaluation.
    pub change: Option<f64>,
    /// The change over the mean of all changes before it; absent where that is undefined or
    /// infinite.
    pub ratio: Option<f64>,
    /// Whether training should stop.
    pub stop: bool,
    /// Why to stop, or why there is no ratio; absent where neither needs saying.
    pub reason: Option<String>,
}

impl EarlyStop {
    /// A rule that has seen nothing yet.
    ///
    /// # Errors
    ///
    /// [`EarlyStopError`] where a parameter is out of range.
    pub fn new(parameters: EarlyStopParameters) -> Result<Self, EarlyStopError> {
        let EarlyStopParameters { max_ratio, absolute_floor } = parameters;
        if !(max_ratio.is_finite() && max_ratio > 0.0) {
            return Err(EarlyStopError::MaxRatio(max_ratio));
        }
        if !(absolute_floor.is_finite() && absolute_floor >= 0.0) {
            return Err(EarlyStopError::AbsoluteFloor(absolute_floor));
        }
        Ok(Self { parameters, previous: None, changes: 0, sum_of_changes: 0.0 })
    }

    /// Judges by other parameters from now on; what was seen stays.
    ///
    /// # Errors
    ///
    /// As [`EarlyStop::new`].
    pub fn set_parameters(
        &mut self,
        parameters: EarlyStopParameters,
    ) -> Result<(), EarlyStopError> {
        self.parameters = Self::new(parameters)?.parameters;
        Ok(())
    }

    /// Takes the CSI of the next evaluation and judges its change.
    ///
    /// The ratio needs at least two earlier changes. Where all of them are zero it is infinite, and
    /// counts only if the change exceeds the absolute floor. A CSI that is not finite is left
    /// out: the next change is measured from the one before it.
    pub fn push(&mut self, csi: f64) -> EarlyStopVerdict {
        let verdict = self.judge(csi);
        if csi.is_finite() {
            self.previous = Some(csi);
        }
        if let Some(change) = verdict.change {
            self.changes += 1;
            self.sum_of_changes += change;
        }
        verdict
    }

    fn judge(&self, csi: f64) -> EarlyStopVerdict {
        if !csi.is_finite() {
            return undecided(None, format!("CSI is {csi}: this evaluation is left out"));
        }
        let Some(previous) = self.previous else {
            return undecided(None, "not yet: this is the first CSI".to_owned());
        };
        let change = (csi - previous).abs();
        if self.changes < MIN_CHANGES {
            let reason = format!(
                "not yet: a usual change takes {MIN_CHANGES} earlier changes, there are {}",
                self.changes
            );
            return undecided(Some(change), reason);
        }

        let mean = self.sum_of_changes / self.changes as f64;
        let moved = format!(
            "CSI per sample {} by {}",
            if csi < previous { "fell" } else { "rose" },
            significant(change)
        );
        // A mean that is rounding, or too small to divide by, is no better known than zero.
        let rounding = ROUNDING * csi.abs().max(previous.abs()).max(self.parameters.absolute_floor);
        let ratio = Some(change / mean).filter(|ratio| mean > rounding && ratio.is_finite());
        match ratio {
            Some(ratio) => {
                let limit = self.parameters.max_ratio;
                let stop = ratio > limit;
                let reason = format!(
                    "{moved}, {} times the mean {} of the {} changes before; the limit is {limit}",
                    significant(ratio),
                    significant(mean),
                    self.changes,
                );
                EarlyStopVerdict {
                    change: Some(change),
                    ratio: Some(ratio),
                    stop,
                    reason: stop.then_some(reason),
                }
            }
            None if change <= rounding => {
                undecided(Some(change), "CSI has not changed so far".to_owned())
            }
            None => {
                let floor = self.parameters.absolute_floor;
                let stop = change > floor;
                let relation = if stop { "above" } else { "not above" };
                let reason = format!(
                    "{moved}, where the mean of the {} changes before is {}; \
                     that is {relation} the absolute floor of {floor}",
                    self.changes,
                    significant(mean),
                );
                EarlyStopVerdict { stop, ..undecided(Some(change), reason) }
            }
        }
    }
}

fn undecided(change: Option<f64>, reason: String) -> EarlyStopVerdict {
    EarlyStopVerdict { change, ratio: None, stop: false, reason: Some(reason) }
}

/// Three significant digits, without an exponent where that stays short.
pub(crate) fn significant(value: f64) -> String {
    let scientific = format!("{value:.2e}");
    let exponent = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok());
    match exponent {
        Some(exponent @ -4..=6_i32) => {
            let decimals = usize::try_from(2 - exponent).unwrap_or(0);
            format!("{value:.decimals$}")
        }
        _ => scientific,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rule() -> EarlyStop {
        EarlyStop::new(EarlyStopParameters { max_ratio: 10.0, absolute_floor: 2.5 }).unwrap()
    }

    fn verdicts(run: &[f64]) -> Vec<EarlyStopVerdict> {
        let mut rule = rule();
        run.iter().map(|csi| rule.push(*csi)).collect()
    }

    fn last(run: &[f64]) -> EarlyStopVerdict {
        verdicts(run).pop().unwrap()
    }

    #[test]
    fn rounding_is_no_change() {
        let mut rule = EarlyStop::new(EarlyStopParameters::default()).unwrap();
        for round in 0..50 {
            let csi = 14.0 * (1.0 + f64::from(round % 7) * f64::EPSILON);
            assert!(!rule.push(csi).stop, "round {round}");
        }
        assert!(rule.push(14.1).stop);
    }

    #[test]
    fn the_first_evaluation_has_no_change_and_the_next_two_no_ratio() {
        let verdicts = verdicts(&[10.0, 11.0, 900.0]);
        let changes: Vec<_> = verdicts.iter().map(|verdict| verdict.change).collect();
        assert_eq!(changes, [None, Some(1.0), Some(889.0)]);
        for verdict in verdicts {
            assert_eq!((verdict.ratio, verdict.stop), (None, false));
            assert!(verdict.reason.unwrap().starts_with("not yet"));
        }
    }

    #[test]
    fn a_change_beyond_the_limit_stops_and_says_so_in_a_sentence() {
        let verdict = last(&[0.0, 2.0, 5.0, 9.0, 49.5]);
        assert_eq!(verdict.ratio, Some(13.5));
        assert!(verdict.stop);
        assert_eq!(
            verdict.reason.unwrap(),
            "CSI per sample rose by 40.5, 13.5 times the mean 3.00 of the 3 changes before; the limit is 10"
        );
    }

    #[test]
    fn a_fall_counts_like_a_rise() {
        let verdict = last(&[100.0, 101.0, 100.0, 50.0]);
        assert!(verdict.stop);
        assert!(verdict.reason.unwrap().starts_with("CSI per sample fell by 50.0, 50.0 times"));
    }

    #[test]
    fn a_change_of_exactly_the_limit_goes_on_without_comment() {
        let expected =
            EarlyStopVerdict { change: Some(10.0), ratio: Some(10.0), stop: false, reason: None };
        assert_eq!(last(&[0.0, 1.0, 2.0, 12.0]), expected);
    }

    #[test]
    fn after_no_change_at_all_only_a_change_above_the_floor_stops() {
        for (change, stop) in [(2.5, false), (2.5625, true)] {
            let verdict = last(&[4.0, 4.0, 4.0, 4.0 + change]);
            assert_eq!((verdict.change, verdict.ratio), (Some(change), None));
            assert_eq!(verdict.stop, stop);
            assert!(verdict.reason.unwrap().contains("floor of 2.5"));
        }
    }

    #[test]
    fn a_mean_too_small_to_divide_by_is_zero() {
        let tiny = f64::from_bits(1);
        for (change, stop) in [(2.5, false), (3.0, true)] {
            let verdict = last(&[0.0, tiny, 0.0, change]);
            let json = serde_json::to_value(&verdict).unwrap();
            assert!(json["ratio"].is_null());
            assert_eq!(json["stop"], stop);
        }
    }

    #[test]
    fn rounding_is_no_usual_change() {
        let (csi, next) = (0.1_f64, 0.1_f64.next_up());
        let mut run = vec![csi; 20];
        run.extend([next, csi, next, csi]);
        assert!(verdicts(&run).iter().all(|verdict| !verdict.stop));
        run.push(2.7);
        assert!(last(&run).stop);
    }

    #[test]
    fn a_constant_csi_never_stops() {
        let verdict = last(&[7.0; 6]);
        assert_eq!((verdict.change, verdict.ratio, verdict.stop), (Some(0.0), None, false));
        assert_eq!(verdict.reason.unwrap(), "CSI has not changed so far");
    }

    #[test]
    fn the_verdict_does_not_latch() {
        let mut rule = rule();
        let stops: Vec<_> =
            [0.0, 1.0, 2.0, 52.0, 53.0, 5000.0].map(|csi| rule.push(csi).stop).into();
        assert_eq!(stops, [false, false, false, true, false, true]);
    }

    #[test]
    fn a_csi_that_is_not_finite_is_left_out_of_the_changes() {
        let run = verdicts(&[0.0, 1.0, f64::NAN, 2.0, 12.5]);
        assert_eq!((run[2].change, run[2].stop), (None, false));
        assert_eq!(run[3].change, Some(1.0));
        assert_eq!((run[4].ratio, run[4].stop), (Some(10.5), true));
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let with = |max_ratio, absolute_floor| {
            EarlyStop::new(EarlyStopParameters { max_ratio, absolute_floor })
        };
        assert!(matches!(with(f64::NAN, 0.0), Err(EarlyStopError::MaxRatio(_))));
        assert!(matches!(with(0.0, 0.0), Err(EarlyStopError::MaxRatio(_))));
        assert!(matches!(with(10.0, -1.0), Err(EarlyStopError::AbsoluteFloor(_))));
        assert!(with(10.0, 0.0).is_ok());
    }
}
