//! `trainer judge over-optimisation`: which answers are over-optimised, and whether a reward model's latents tell.

mod guidelines;
mod outliers;
mod report;

use std::path::{Path, PathBuf};

use anyhow::ensure;

use crate::judge::session::read_answers;
use crate::judge::session::{AskPolicy, Judge};
use crate::judge::session::{JudgeRun, PlacedQuestion, failures};
use crate::train::{Compute, data_files};
use guidelines::OverOptimised;
pub use outliers::AnswerStatistics;
use outliers::RewardModelSettings;
pub use report::{OverOptimisationReport, RewardModelReport, StatisticReport};

/// Which answers are judged by whom, and what they are compared with.
pub struct OverOptimisation<'a> {
    /// Files with answers, and with labels where they are known.
    pub answers: &'a [PathBuf],
    /// Who judges.
    pub judge: &'a dyn Judge,
    /// How it is asked.
    pub policy: AskPolicy,
    /// Checkpoint whose rewards and latents are compared with the verdicts.
    pub model: Option<&'a Path>,
    /// SFT answers that its latents are compared with, instead of its own baseline.
    pub baseline: Option<&'a Path>,
    /// Where and how that scores.
    pub compute: Compute,
    /// Folder of the verdicts.
    pub output: Option<&'a Path>,
}

impl OverOptimisation<'_> {
    /// Scores the answers where there is a checkpoint, has each judged once, and compares the verdicts with labels and
    /// scores. Verdicts in the folder are not asked for again.
    ///
    /// # Errors
    /// A file, line or checkpoint that cannot be read, an answer that the checkpoint cannot score, a server that would answer
    /// no question, or no verdict at all.
    pub fn run(&self) -> anyhow::Result<OverOptimisationReport> {
        ensure!(
            self.baseline.is_none() || self.model.is_some(),
            "--baseline: needs the checkpoint that scores it, --model"
        );
        let answers = read_answers(self.answers)?;
        // Before anything is paid for: what the checkpoint cannot score is known at once.
        let outliers = match self.model {
            None => None,
            Some(model) => {
                let Self { baseline, compute, .. } = self;
                let settings = RewardModelSettings { model, baseline: *baseline, compute };
                Some(settings.outliers(&answers)?)
            }
        };
        let asked: Vec<PlacedQuestion> = answers
            .iter()
            .map(|answer| PlacedQuestion {
                place: answer.place(),
                question: guidelines::question(answer),
            })
            .collect();
        let run = JudgeRun {
            judge: self.judge,
            guidelines: guidelines::VERSION,
            policy: self.policy,
            output: self.output,
        };
        let verdicts = run.verdicts::<OverOptimised>(&asked)?;
        let unjudged = failures(&asked, &verdicts);
        let rows = report::rows(&answers, verdicts, outliers.as_ref());
        Ok(OverOptimisationReport::new(
            data_files(self.answers)?,
            self.judge.name(),
            unjudged,
            rows,
            outliers.map(|outliers| (outliers, self.compute.dtype())),
        ))
    }
}
