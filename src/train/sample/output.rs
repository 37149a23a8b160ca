//! The file with samples, and what is kept beside it until all of them are drawn.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::prompts::SamplePrompt;
use super::record::SampleRecord;
use crate::checkpoint::replace_file;
use crate::generate::Finish;

/// Appended to the output's name for what is drawn so far.
const SUFFIX: &str = ".progress";
/// Appended for what the samples follow from.
const RECORD_SUFFIX: &str = ".json";

/// A sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SampleRow {
    /// The prompt's number among the different ones, from 0.
    pub(super) prompt_number: usize,
    /// The sample's number, from 0.
    pub(super) sample: usize,
    pub(super) response: String,
    pub(super) tokens: usize,
    pub(super) finish: Finish,
}

/// The file to be, and the one that grows.
#[derive(Debug)]
pub(super) struct Output {
    output: PathBuf,
    progress: PathBuf,
    file: File,
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Output {
    /// Opens what an earlier run has left, or begins; answers the samples that are there. A last line that was half
    /// written is cut off.
    ///
    /// # Errors
    /// What was begun with other settings, or is damaged; a folder that cannot be written.
    pub(super) fn open(
        output: &Path,
        record: &SampleRecord,
    ) -> anyhow::Result<(Self, Vec<SampleRow>)> {
        let progress = suffixed(output, SUFFIX);
        let at = || progress.display().to_string();
        let text = match fs::read(&progress) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(at),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let damaged = || format!("{}: damaged; delete it to begin anew", at());
        let begun: Option<SampleRecord> =
            lines.next().map(serde_json::from_slice).transpose().with_context(damaged)?;
        let rows = lines.map(serde_json::from_slice).collect::<Result<Vec<SampleRow>, _>>();
        let rows = rows.with_context(damaged)?;
        let mut file =
            OpenOptions::new().create(true).append(true).open(&progress).with_context(at)?;
        file.set_len(whole as u64).with_context(at)?;
        match begun {
            Some(begun) => ensure!(
                begun == *record,
                "{}: begun with another model, other prompts or settings; delete it to begin anew",
                at()
            ),
            None => write_line(&mut file, record).with_context(at)?,
        }
        Ok((Self { output: output.to_owned(), progress, file }, rows))
    }

    /// The file that grows.
    pub(super) fn path(&self) -> &Path {
        &self.progress
    }

    /// Adds a sample.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn append(&mut self, row: &SampleRow) -> anyhow::Result<()> {
        write_line(&mut self.file, row).with_context(|| self.progress.display().to_string())
    }

    /// Writes all samples in their order, and what they follow from; then nothing is kept beside them.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn finish(
        self,
        rows: &[SampleRow],
        prompts: &[SamplePrompt],
        record: &SampleRecord,
    ) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        for SampleRow { prompt_number, sample, response, tokens, finish } in rows {
            let line = json!({
                "prompt": prompts[*prompt_number].messages,
                "response": response,
                "sample": sample,
                "tokens": tokens,
                "finish": finish,
            });
            write_line(&mut bytes, &line)?;
        }
        let mut described = serde_json::to_vec_pretty(record)?;
        described.push(b'\n');
        replace_file(&suffixed(&self.output, RECORD_SUFFIX), &described)?;
        replace_file(&self.output, &bytes)?;
        fs::remove_file(&self.progress).with_context(|| self.progress.display().to_string())
    }
}

/// In one call, so that a process that is killed leaves whole lines but for the last.
fn write_line(to: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(to.write_all(&line)?)
}
