//! The verdicts of a run on disk, so that none is asked for twice.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failure::Unjudged;
use super::parse::Verdict;
use super::place::AnswerPlace;
use super::retry::QuestionOutcome;

/// File of the verdicts in the output folder.
pub const VERDICTS_FILE: &str = "verdicts.jsonl";

/// A line of the file.
#[derive(Serialize)]
struct Record<'a, T> {
    key: &'a str,
    #[serde(flatten)]
    place: &'a AnswerPlace,
    judge: &'a str,
    guidelines: &'a str,
    attempts: u32,
    verdict: Option<&'a T>,
    unjudged: Option<&'a Unjudged>,
}

/// What is read of a line.
#[derive(Deserialize)]
#[serde(expecting = "struct Kept")]
struct KeptVerdict {
    key: String,
    verdict: Option<Value>,
}

/// The file, open for what is to come.
pub(super) struct VerdictFile {
    file: File,
    path: PathBuf,
}

impl VerdictFile {
    /// Opens the file of a folder, both of which are made where they are missing, and gives the verdicts in it that have
    /// one of these keys. A last line that was not written to its end is cut off.
    ///
    /// # Errors
    /// A file that cannot be read or written, that another process writes, or with a line that is no record.
    pub(super) fn open<T: Verdict>(
        folder: &Path,
        wanted: &HashSet<&str>,
    ) -> anyhow::Result<(Self, HashMap<String, T>)> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(VERDICTS_FILE);
        let at = || path.display().to_string();
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).with_context(at)?;
        file.try_lock().with_context(|| format!("{}: another process writes it", at()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(at)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).with_context(at)?;
        }
        let mut verdicts = HashMap::new();
        for (index, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let at = || format!("{}, line {}", path.display(), index + 1);
            let kept: KeptVerdict = serde_json::from_slice(line).with_context(at)?;
            let Some(verdict) = kept.verdict.filter(|_| wanted.contains(kept.key.as_str())) else {
                continue;
            };
            let verdict: T = serde_json::from_value(verdict).with_context(at)?;
            let checked = verdict.check();
            ensure!(checked.is_ok(), "{}: {}", at(), checked.err().unwrap_or_default());
            verdicts.insert(kept.key, verdict);
        }
        Ok((Self { file, path }, verdicts))
    }

    /// Appends what came of a question, in one write.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn append<T: Serialize>(
        &mut self,
        key: &str,
        place: &AnswerPlace,
        (judge, guidelines): (&str, &str),
        outcome: &QuestionOutcome<T>,
    ) -> anyhow::Result<()> {
        let QuestionOutcome { verdict, attempts } = outcome;
        let (verdict, unjudged) = (verdict.as_ref().ok(), verdict.as_ref().err());
        let attempts = *attempts;
        let record = Record { key, place, judge, guidelines, attempts, verdict, unjudged };
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| self.path.display().to_string())
    }
}
