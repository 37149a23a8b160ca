//! Agreement of verdicts with labels that the data has.

use serde::Serialize;

use crate::train::wilson_interval;

/// Verdicts beside labels of the same answers, each of which says whether an answer is over-optimised.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// Answers with a label and a verdict.
    pub answers: usize,
    /// Over-optimised by both.
    pub both: usize,
    /// Over-optimised by the label alone.
    pub label_only: usize,
    /// Over-optimised by the verdict alone.
    pub verdict_only: usize,
    /// Over-optimised by neither.
    pub neither: usize,
    /// Share of the answers of which both say the same.
    pub accuracy: f64,
    /// Wilson's 95 % interval of the accuracy.
    pub interval: (f64, f64),
    /// Cohen's kappa (1960): the accuracy beyond what independent judgements with these shares have, 1 for full agreement.
    /// Absent where both say the same of all answers.
    pub kappa: Option<f64>,
}

impl Agreement {
    /// Of pairs of label and verdict; `None` where there are none.
    pub fn of(pairs: &[(bool, bool)]) -> Option<Self> {
        let answers = pairs.len();
        let count = |pair| pairs.iter().filter(|found| **found == pair).count();
        let both = count((true, true));
        let (label_only, verdict_only) = (count((true, false)), count((false, true)));
        let neither = count((false, false));
        let agreeing = both + neither;
        let n = answers as f64;
        let accuracy = agreeing as f64 / n;
        // In whole numbers, so that agreement by chance that is certain is found to be so.
        let (labels, verdicts) = (both + label_only, both + verdict_only);
        let by_chance = labels * verdicts + (answers - labels) * (answers - verdicts);
        let squared = answers * answers;
        let kappa = (by_chance < squared).then(|| (agreeing * answers) as f64 - by_chance as f64);
        Some(Self {
            answers,
            both,
            label_only,
            verdict_only,
            neither,
            accuracy,
            interval: wilson_interval(agreeing, answers),
            kappa: kappa.map(|beyond| beyond / (squared - by_chance) as f64),
        })
        .filter(|_| n > 0.0)
    }
}
