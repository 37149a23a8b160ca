//! What the reports of both commands have in common.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::failure::UnjudgedAnswer;
use super::failure::UnjudgedReason;
use crate::checkpoint::replace_file;

/// Questions without a verdict: how many for which reason, and each of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UnjudgedAnswers {
    /// Numbers by reason.
    pub reasons: BTreeMap<UnjudgedReason, usize>,
    /// In the order of the questions.
    pub answers: Vec<UnjudgedAnswer>,
}

impl From<Vec<UnjudgedAnswer>> for UnjudgedAnswers {
    fn from(answers: Vec<UnjudgedAnswer>) -> Self {
        let mut reasons = BTreeMap::new();
        for answer in &answers {
            *reasons.entry(answer.unjudged.reason).or_default() += 1;
        }
        Self { reasons, answers }
    }
}

impl UnjudgedAnswers {
    /// A table of reasons, if there are any, each with the first of its places.
    pub(in crate::judge) fn markdown(&self) -> String {
        let mut text = String::new();
        if self.answers.is_empty() {
            return text;
        }
        text.push_str("\n| without a verdict | questions | first |\n|---|---|---|\n");
        for (reason, count) in &self.reasons {
            let first = self.answers.iter().find(|answer| answer.unjudged.reason == *reason);
            let place = first.map_or(String::new(), |first| first.place.to_string());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {reason} | {count} | {place} |");
        }
        text
    }
}

/// Writes a report as Markdown and as JSON into a folder, which is made where it is missing.
///
/// # Errors
/// A folder or file that cannot be written.
pub(in crate::judge) fn write_report(
    folder: &Path,
    name: &str,
    report: &impl Serialize,
    markdown: &str,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    replace_file(&folder.join(format!("{name}.json")), &serde_json::to_vec_pretty(report)?)?;
    replace_file(&folder.join(format!("{name}.md")), markdown.as_bytes())?;
    Ok(())
}
