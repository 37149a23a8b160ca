//! What came of a comparison.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::guidelines::{Preferred, VERSION};
use super::pairs::{Matched, Unmatched};
use crate::judge::session::UnjudgedAnswer;
use crate::judge::session::{UnjudgedAnswers, write_report};
use crate::judge::statistics::Share;
use crate::train::{DataFile, mean_interval};

/// Files of the report, without their suffixes.
const NAME: &str = "compare";

/// Whose answers were preferred.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompareReport {
    /// Names and SHA-256 of the files: the answers, and those that they are compared with.
    pub data: Vec<DataFile>,
    /// Who judged.
    pub judge: String,
    /// Version of the guidelines.
    pub guidelines: &'static str,
    /// Pairs of answers to the same prompt.
    pub pairs: usize,
    /// Pairs with a verdict in both orders, of which all that follows is.
    pub judged: usize,
    /// The answer was preferred in both orders.
    pub win: Share,
    /// Neither was.
    pub tie: Share,
    /// The other answer was preferred in both orders.
    pub lose: Share,
    /// Wins and half the ties.
    pub win_rate: WinRate,
    /// The verdict flipped with the order: the same position was preferred in both, first or second.
    pub flipped: Share,
    /// What was preferred, whosever answer stood there.
    pub positions: Positions,
    /// Questions, two a pair, without a verdict.
    pub unjudged: UnjudgedAnswers,
    /// Answers whose prompt the other file does not have.
    unmatched: Vec<Unmatched>,
}

/// The share of wins, ties counting half.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WinRate {
    /// The share.
    pub rate: f64,
    /// Its 95 % interval over pairs, normal; absent for fewer than two.
    pub interval: Option<(f64, f64)>,
}

/// What was preferred in single questions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Positions {
    /// The answer that was shown first.
    pub first: Share,
    /// The answer that was shown second.
    pub second: Share,
    /// Neither.
    pub tie: Share,
}

impl CompareReport {
    /// `judged`: the position that was preferred in each pair as given, and with the order swapped.
    pub(super) fn new(
        data: Vec<DataFile>,
        judge: &str,
        judged: &[(Preferred, Preferred)],
        unjudged: Vec<UnjudgedAnswer>,
        Matched { pairs, unmatched }: Matched,
    ) -> Self {
        use Preferred::{First, Second};
        let count = |pairs: &[(Preferred, Preferred)]| {
            Share::of(judged.iter().filter(|pair| pairs.contains(pair)).count(), judged.len())
        };
        let points = |pair: &(Preferred, Preferred)| match pair {
            (First, Second) => 1.0,
            (Second, First) => 0.0,
            _ => 0.5,
        };
        let points: Vec<f64> = judged.iter().map(points).collect();
        let at = |position: Preferred| {
            let both = judged.iter().flat_map(|&(given, swapped)| [given, swapped]);
            Share::of(both.filter(|found| *found == position).count(), 2 * judged.len())
        };
        let (win, lose) = (count(&[(First, Second)]), count(&[(Second, First)]));
        Self {
            data,
            judge: judge.to_owned(),
            guidelines: VERSION,
            pairs: pairs.len(),
            judged: judged.len(),
            tie: Share::of(judged.len() - win.count - lose.count, judged.len()),
            win,
            lose,
            win_rate: WinRate {
                rate: points.iter().sum::<f64>() / points.len().max(1) as f64,
                interval: mean_interval(&points).map(|(low, high)| (low.max(0.0), high.min(1.0))),
            },
            flipped: count(&[(First, First), (Second, Second)]),
            positions: Positions { first: at(First), second: at(Second), tie: at(Preferred::Tie) },
            unjudged: unjudged.into(),
            unmatched,
        }
    }

    /// Tables: wins, ties and losses, and what the order does.
    pub fn markdown(&self) -> String {
        let Self { pairs, judged, judge, guidelines, win, tie, lose, .. } = self;
        let [answers, against] = [0, 1].map(|at| self.data.get(at).map_or("", |file| &file.name));
        let interval = self.win_rate.interval;
        let interval =
            interval.map_or(String::new(), |(low, high)| format!(" ({low:.3} to {high:.3})"));
        let Positions { first, second, tie: neither } = self.positions;
        let mut text = format!(
            "{answers} against {against}: {judged} of {pairs} pairs were judged by {judge} (guidelines {guidelines}), each \
             twice with the order swapped. A win is preferred in both orders, a loss in neither while the other is in both; \
             all else is a tie. Intervals are 95 % ones.\n\n\
             | | pairs | share | interval |\n|---|---|---|---|\n\
             | win | {win} |\n| tie | {tie} |\n| lose | {lose} |\n\n\
             The win rate, ties counting half, is {:.3}{interval}.\n\n\
             | order | count | share | interval |\n|---|---|---|---|\n\
             | pairs whose verdict flipped with it | {} |\n\
             | first preferred, of all questions | {first} |\n\
             | second preferred | {second} |\n| neither | {neither} |\n",
            self.win_rate.rate, self.flipped
        );
        text.push_str(&self.unjudged.markdown());
        if !self.unmatched.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "\n{} answers have no counterpart with the same prompt, and are left out.",
                self.unmatched.len()
            );
        }
        text
    }

    /// Writes tables and JSON into a folder, which is made where it is missing.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        write_report(folder, NAME, self, &self.markdown())
    }
}
