//! What came of it: tables, JSON, and every answer with its verdict.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::guidelines::{Behaviour, OverOptimised, VERSION};
use super::outliers::{AnswerStatistics, Outliers, STATISTICS, Statistic};
use crate::checkpoint::replace_file;
use crate::judge::session::LabelledAnswer;
use crate::judge::session::{AnswerPlace, Unjudged, UnjudgedAnswer};
use crate::judge::session::{UnjudgedAnswers, write_report};
use crate::judge::statistics::{Agreement, Auc, Share, auc};
use crate::ops::cpu::Precision;
use crate::train::DataFile;

/// Files of the report, without their suffixes.
const NAME: &str = "over-optimisation";

/// Verdicts on answers, beside labels and a reward model's statistics.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OverOptimisationReport {
    /// Names and SHA-256 of the files with the answers.
    pub data: Vec<DataFile>,
    /// Who judged.
    pub judge: String,
    /// Version of the guidelines.
    pub guidelines: &'static str,
    /// Answers in the files.
    pub answers: usize,
    /// Answers with a verdict.
    pub judged: usize,
    /// Over-optimised answers among them.
    pub over_optimised: Share,
    /// Answers with each behaviour.
    pub behaviours: BTreeMap<&'static str, usize>,
    /// Answers without a verdict.
    pub unjudged: UnjudgedAnswers,
    /// Agreement with the labels that the data has; absent where it has none.
    pub agreement: Option<Agreement>,
    /// How well a reward model tells what is over-optimised.
    pub reward_model: Option<RewardModelReport>,
    /// Every answer; written to a file of its own.
    #[serde(skip)]
    rows: Vec<JudgedAnswer>,
}

/// A reward model, and how well its statistics tell over-optimised answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RewardModelReport {
    /// What the checkpoint is called.
    pub model: String,
    /// Hash of its weights.
    pub weights: String,
    /// Precision of products that scored the answers.
    pub dtype: Precision,
    /// Latents that theirs are compared with.
    pub baseline_samples: Option<usize>,
    /// Why statistics are missing.
    pub note: Option<String>,
    /// Each statistic that could be computed.
    pub statistics: Vec<StatisticReport>,
}

/// How well a statistic tells over-optimised answers, which are the positives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatisticReport {
    /// Its name, as in [`AnswerStatistics`].
    pub statistic: &'static str,
    /// By the judge's verdicts; absent where all are the same.
    pub verdicts: Option<Auc>,
    /// By the labels that the data has; absent where all are the same, or there are none.
    pub labels: Option<Auc>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct JudgedAnswer {
    #[serde(flatten)]
    place: AnswerPlace,
    label: Option<bool>,
    verdict: Option<OverOptimised>,
    unjudged: Option<Unjudged>,
    statistics: Option<AnswerStatistics>,
}

impl JudgedAnswer {
    fn verdict(&self) -> Option<bool> {
        Some(self.verdict.as_ref()?.over_optimised)
    }
}

/// Answers with what is known of them.
pub(super) fn rows(
    answers: &[LabelledAnswer],
    verdicts: Vec<Result<OverOptimised, Unjudged>>,
    outliers: Option<&Outliers>,
) -> Vec<JudgedAnswer> {
    let row = |(index, (answer, verdict)): (
        usize,
        (&LabelledAnswer, Result<OverOptimised, Unjudged>),
    )| {
        let (verdict, unjudged) = match verdict {
            Ok(verdict) => (Some(verdict), None),
            Err(unjudged) => (None, Some(unjudged)),
        };
        let statistics = outliers.and_then(|found| found.statistics.get(index).copied());
        JudgedAnswer { place: answer.place(), label: answer.label, verdict, unjudged, statistics }
    };
    answers.iter().zip(verdicts).enumerate().map(row).collect()
}

/// By what `class` says of answers, how well a statistic tells.
fn told(
    rows: &[JudgedAnswer],
    value: Statistic,
    class: fn(&JudgedAnswer) -> Option<bool>,
) -> Option<Auc> {
    let scores = rows.iter().filter_map(|row| {
        let score = (value.1)(row.statistics.as_ref()?)?;
        Some((score, class(row)?))
    });
    auc(&scores.collect::<Vec<_>>())
}

impl OverOptimisationReport {
    pub(super) fn new(
        data: Vec<DataFile>,
        judge: &str,
        unjudged: Vec<UnjudgedAnswer>,
        rows: Vec<JudgedAnswer>,
        outliers: Option<(Outliers, Precision)>,
    ) -> Self {
        let verdicts: Vec<&OverOptimised> =
            rows.iter().filter_map(|row| row.verdict.as_ref()).collect();
        let judged = verdicts.len();
        let over_optimised = verdicts.iter().filter(|verdict| verdict.over_optimised).count();
        let with = |behaviour: Behaviour| {
            let has = verdicts.iter().filter(|verdict| verdict.behaviours.contains(&behaviour));
            (behaviour.name(), has.count())
        };
        let labelled: Vec<(bool, bool)> =
            rows.iter().filter_map(|row| row.label.zip(row.verdict())).collect();
        let reward_model = outliers.map(|(outliers, dtype)| RewardModelReport {
            model: outliers.name,
            weights: outliers.weights,
            dtype,
            baseline_samples: outliers.baseline_samples,
            note: outliers.note,
            statistics: STATISTICS
                .into_iter()
                .filter(|(_, value)| outliers.statistics.iter().any(|found| value(found).is_some()))
                .map(|statistic| StatisticReport {
                    statistic: statistic.0,
                    verdicts: told(&rows, statistic, JudgedAnswer::verdict),
                    labels: told(&rows, statistic, |row| row.label),
                })
                .collect(),
        });
        Self {
            data,
            judge: judge.to_owned(),
            guidelines: VERSION,
            answers: rows.len(),
            judged,
            over_optimised: Share::of(over_optimised, judged),
            behaviours: Behaviour::ALL.into_iter().map(with).collect(),
            unjudged: unjudged.into(),
            agreement: Agreement::of(&labelled),
            reward_model,
            rows,
        }
    }

    /// Tables: the verdicts, agreement with labels, how well a reward model tells.
    pub fn markdown(&self) -> String {
        let Self { judge, guidelines, answers, judged, over_optimised, .. } = self;
        let mut text = format!(
            "{judged} of {answers} answers were judged by {judge} (guidelines {guidelines}). Intervals are 95 % ones.\n\n\
             | | answers | share | interval |\n|---|---|---|---|\n\
             | over-optimised | {over_optimised} |\n"
        );
        for (name, count) in &self.behaviours {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {name} | {} |", Share::of(*count, *judged));
        }
        text.push_str(&self.unjudged.markdown());
        if let Some(agreement) = &self.agreement {
            let Agreement { both, label_only, verdict_only, neither, accuracy, .. } = agreement;
            let (low, high) = agreement.interval;
            let kappa = agreement.kappa.map_or("-".to_owned(), |kappa| format!("{kappa:.3}"));
            let _ = write!(
                text,
                "\n## Agreement with the labels\n\n\
                 | label | judged over-optimised | judged not |\n|---|---|---|\n\
                 | over-optimised | {both} | {label_only} |\n| not | {verdict_only} | {neither} |\n\n\
                 Of {} answers {accuracy:.3} ({low:.3} to {high:.3}) are judged as labelled; Cohen's kappa is {kappa}.\n",
                agreement.answers
            );
        }
        if let Some(found) = &self.reward_model {
            text.push_str(&found.markdown());
        }
        text
    }

    /// Writes tables, JSON and every answer with its verdict into a folder, which is made where it is missing.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        write_report(folder, NAME, self, &self.markdown())?;
        let mut lines = Vec::new();
        for row in &self.rows {
            serde_json::to_writer(&mut lines, row)?;
            lines.push(b'\n');
        }
        Ok(replace_file(&folder.join(format!("{NAME}.jsonl")), &lines)?)
    }
}

impl RewardModelReport {
    fn markdown(&self) -> String {
        let mut text = format!(
            "\n## What {} tells\n\n\
             Area under the ROC curve of each statistic with over-optimised answers as positives; in brackets DeLong's 95 % \
             interval.\n\n\
             | statistic | by verdicts | over-optimised, others | by labels | over-optimised, others |\n\
             |---|---|---|---|---|\n",
            self.model
        );
        for StatisticReport { statistic, verdicts, labels } in &self.statistics {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {statistic} | {} | {} |", cells(*verdicts), cells(*labels));
        }
        if let Some(samples) = self.baseline_samples {
            let _ = writeln!(text, "\nDistances are from {samples} SFT answers.");
        }
        if let Some(note) = &self.note {
            let _ = writeln!(text, "\n{}: {note}.", self.model);
        }
        text
    }
}

/// Area with its interval, and sizes of the classes.
fn cells(auc: Option<Auc>) -> String {
    let Some(Auc { auc, interval, positives, negatives }) = auc else {
        return "- | -".to_owned();
    };
    let interval =
        interval.map_or(String::new(), |(low, high)| format!(" ({low:.3} to {high:.3})"));
    format!("{auc:.3}{interval} | {positives}, {negatives}")
}
