//! `trainer judge compare`: whose answers are better, each pair judged in both orders.

mod guidelines;
mod pairs;
mod report;

use std::path::Path;

use crate::judge::session::read_answers;
use crate::judge::session::{AnswerPlace, Order};
use crate::judge::session::{AskPolicy, Judge};
use crate::judge::session::{JudgeRun, PlacedQuestion, failures};
use crate::train::data_files;
use guidelines::Preference;
use pairs::{AnswerPair, Matched};
pub use report::{CompareReport, Positions, WinRate};

/// Whose answers are compared with whose, by whom.
pub struct Compare<'a> {
    /// File with the answers.
    pub answers: &'a Path,
    /// File with the answers that they are compared with.
    pub against: &'a Path,
    /// Who judges.
    pub judge: &'a dyn Judge,
    /// How it is asked.
    pub policy: AskPolicy,
    /// Folder of the verdicts.
    pub output: Option<&'a Path>,
}

impl Compare<'_> {
    /// Matches answers to the same prompt and has each pair judged twice, the second time with the order swapped. Verdicts
    /// in the folder are not asked for again.
    ///
    /// # Errors
    /// A file or line that cannot be read, no prompt that both files have, a server that would answer no question, or no
    /// verdict at all.
    pub fn run(&self) -> anyhow::Result<CompareReport> {
        let files = [self.answers.to_owned(), self.against.to_owned()];
        let [answers, against] = &files;
        let read = |file| read_answers(std::slice::from_ref(file));
        let matched = Matched::of(read(answers)?, read(against)?)?;
        matched.name_unmatched();
        let both =
            |pair: &AnswerPair| [Order::Given, Order::Swapped].map(|order| question(pair, order));
        let asked: Vec<PlacedQuestion> = matched.pairs.iter().flat_map(both).collect();
        let run = JudgeRun {
            judge: self.judge,
            guidelines: guidelines::VERSION,
            policy: self.policy,
            output: self.output,
        };
        let verdicts = run.verdicts::<Preference>(&asked)?;
        let unjudged = failures(&asked, &verdicts);
        // Which position was preferred, of each pair as given and swapped, where both are known.
        let judged = verdicts.chunks_exact(2).filter_map(|orders| match orders {
            [Ok(given), Ok(swapped)] => Some((given.preferred, swapped.preferred)),
            _ => None,
        });
        let judged: Vec<_> = judged.collect();
        let data = data_files(&files)?;
        Ok(CompareReport::new(data, self.judge.name(), &judged, unjudged, matched))
    }
}

fn question(pair: &AnswerPair, order: Order) -> PlacedQuestion {
    let (first, second) = match order {
        Order::Given => (&pair.answer, &pair.against),
        Order::Swapped => (&pair.against, &pair.answer),
    };
    let question = guidelines::question(pair.answer.response.prompt(), first.text(), second.text());
    PlacedQuestion { place: AnswerPlace { order: Some(order), ..pair.answer.place() }, question }
}
