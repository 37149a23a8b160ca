//! The answers of a file, some scored already, some to score.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::checkpoint::Input;
use crate::lines::lines;
use crate::monitor::{Sample, Subject, fingerprint};
use crate::train::{ANSWER_FORMS, answer};

/// A line of a file: an answer that is scored already, or one to score.
#[derive(Debug, Deserialize)]
#[serde(expecting = "struct Row")]
struct ReplayLine {
    step: Option<u64>,
    latent: Option<Vec<f32>>,
    reward: Option<f32>,
    tokens: Option<u32>,
    sigma: Option<f32>,
    divergence: Option<f32>,
}

/// An answer of a file.
pub(super) struct ReplayedAnswer {
    pub(super) line: usize,
    pub(super) step: Option<u64>,
    pub(super) content: AnswerContent,
}

/// What a line gives.
pub(super) enum AnswerContent {
    Scored(Box<Sample>),
    Input(Input),
}

/// The answers of a file.
pub(super) struct AnswerFile {
    pub(super) file: PathBuf,
    pub(super) answers: Vec<ReplayedAnswer>,
}

impl ReplayLine {
    /// `input` is what the line says besides.
    fn content(
        self,
        input: Option<Input>,
        file: &Arc<str>,
        line: usize,
    ) -> anyhow::Result<AnswerContent> {
        let Some(latent) = self.latent else {
            let forms = format!("`latent`, `reward` and `tokens`; {ANSWER_FORMS}");
            return Ok(AnswerContent::Input(input.with_context(|| format!("needs {forms}"))?));
        };
        let reward = self.reward.context("`latent` needs its `reward`")?;
        let tokens = self.tokens.context("`latent` needs its `tokens`")?;
        ensure!(!latent.is_empty(), "`latent` is empty");
        ensure!(
            reward.is_finite() && latent.iter().all(|value| value.is_finite()),
            "`latent` and `reward` must be finite"
        );
        let bytes: Vec<u8> = latent.iter().flat_map(|value| value.to_le_bytes()).collect();
        let subject = input.as_ref().map(Subject::of).unwrap_or_default();
        Ok(AnswerContent::Scored(Box::new(Sample {
            // The same text has the same latent, bit for bit.
            sequence: fingerprint(&bytes),
            latent,
            // A mean over something that is not known is not known either.
            sigma: self.sigma.unwrap_or(f32::NAN),
            divergence: self.divergence.unwrap_or(f32::NAN),
            reward,
            tokens,
            response_characters: subject.response_characters,
            prompt: subject.prompt,
            request: file.clone(),
            index: u32::try_from(line).unwrap_or(u32::MAX),
        })))
    }
}

impl AnswerFile {
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let name: Arc<str> = file.display().to_string().into();
        let mut answers: Vec<ReplayedAnswer> = Vec::new();
        let mut dimension = None;
        for (number, text) in lines(file)?.enumerate() {
            let line = number + 1;
            let at = || format!("{name}, line {line}");
            let text = text.with_context(at)?;
            if text.trim().is_empty() {
                continue;
            }
            let row: ReplayLine = serde_json::from_str(&text).with_context(at)?;
            let step = row.step;
            let columns = serde_json::from_str(&text).with_context(at)?;
            let input = answer(&columns).with_context(at)?;
            let content = row.content(input, &name, line).with_context(at)?;
            if let AnswerContent::Scored(sample) = &content {
                let found = sample.latent.len();
                let expected = *dimension.get_or_insert(found);
                ensure!(
                    found == expected,
                    "{name}, line {line}: a latent of {found} numbers after ones of {expected}"
                );
            }
            answers.push(ReplayedAnswer { line, step, content });
        }
        ensure!(!answers.is_empty(), "{name}: no answer");
        Ok(Self { file: file.to_owned(), answers })
    }

    pub(super) fn has_texts(&self) -> bool {
        self.answers.iter().any(|answer| matches!(answer.content, AnswerContent::Input(_)))
    }

    pub(super) fn dimension(&self) -> Option<usize> {
        self.answers.iter().find_map(|answer| match &answer.content {
            AnswerContent::Scored(sample) => Some(sample.latent.len()),
            AnswerContent::Input(_) => None,
        })
    }
}
