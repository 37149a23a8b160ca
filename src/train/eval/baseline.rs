//! `trainer baseline`: SFT answers become the baseline of a checkpoint that is there.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::Value;

use crate::checkpoint::{BASELINE_FILE, Checkpoint, EncodeError, Input, TextEncoder, replace_file};
use crate::monitor::Subject;
use crate::train::accuracy::{BaselineReport, TextScorer, baseline_of};
use crate::train::data::{
    ANSWER_FORMS, BadLines, LeftOut, Origin, Reason, answer, answers, data_files, name_left_out,
    read_rows,
};
use crate::train::features::{Compute, Depth};
use crate::train::fit::{CARD_FILE, card};

/// What becomes the baseline of which checkpoint.
#[derive(Debug, Clone)]
pub struct BaselineSettings<'a> {
    /// Checkpoint folder.
    pub model: &'a Path,
    /// Files with answers of the SFT model.
    pub data: &'a [PathBuf],
    /// Answers to use, drawn where there are more.
    pub samples: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// What to do with a line that is no answer, or one too long for the model.
    pub bad_lines: BadLines,
    /// Where and how answers are scored.
    pub compute: Compute,
}

/// An answer that can be scored.
struct Answer {
    ids: Vec<u32>,
    prompt: Option<u64>,
    origin: Origin,
}

/// Scores SFT answers and puts their latents into the checkpoint, in place of the baseline that it had; the weights are
/// not touched. Its calibration and the baseline's part of its card are written anew.
///
/// # Errors
/// A checkpoint without latents, no usable answer, a bad line that is to be refused (names file and line), a score that
/// is not finite, or a folder that cannot be written.
pub fn make_baseline(settings: &BaselineSettings<'_>) -> anyhow::Result<BaselineReport> {
    let BaselineSettings { model, data, samples, compute, .. } = settings;
    ensure!(*samples > 0, "--samples: must be at least 1");
    let (checkpoint, dimension) = open_with_latents(model)?;
    let (answers, left_out) = settings.answers(&checkpoint.encoder)?;
    name_left_out(&left_out);
    let found = answers.len();
    let answers = drawn(answers, *samples, settings.seed);
    eprintln!(
        "{found} answers, {} left out; {} become the baseline",
        left_out.len(),
        answers.len()
    );

    let mut scorer = TextScorer::load(&checkpoint, compute, None, Depth::Pooled)?;
    let texts: Vec<&[u32]> = answers.iter().map(|answer| answer.ids.as_slice()).collect();
    let scores = scorer.scores(&texts)?;
    for (score, answer) in scores.iter().zip(&answers) {
        let latent = score.latent.iter().flat_map(|latent| &latent.mean);
        let is_finite = latent.chain([&score.reward]).all(|value| value.is_finite());
        ensure!(is_finite, "{}: its reward or latent is not finite", answer.origin);
    }
    let source = format!("{} of {found} answers of {}", answers.len(), names(data));
    let prompts = answers.iter().map(|answer| answer.prompt).collect();
    let baseline = baseline_of(&scores, dimension, prompts, &checkpoint.weights, source);
    let report = BaselineReport::of(&baseline, data_files(data)?, compute.dtype())
        .context("a baseline without latents")?;

    // The only one that is served goes first: what describes it may be late, but never early.
    replace_file(&model.join(BASELINE_FILE), &baseline.to_bytes()?)?;
    let (name, bytes) = report.file()?;
    replace_file(&model.join(name), &bytes)?;
    let file = model.join(CARD_FILE);
    let old = match fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read.with_context(|| file.display().to_string())?),
    };
    replace_file(&file, card::with_baseline(old.as_deref(), &report)?.as_bytes())?;
    Ok(report)
}

/// Opens a checkpoint that can have a baseline, whatever baseline it has, and says the dimension of its latents.
///
/// # Errors
/// A checkpoint that cannot be opened, or one without latents.
pub fn open_with_latents(model: &Path) -> anyhow::Result<(Checkpoint, usize)> {
    let checkpoint = Checkpoint::open_without_baseline(model)?;
    let dimension = checkpoint.config.head.latent_dim().with_context(|| {
        format!("{}: a standard reward head has no latents to compare with", model.display())
    })?;
    Ok((checkpoint, dimension))
}

impl BaselineSettings<'_> {
    /// The answers of the files, and what was left out of them.
    fn answers(&self, encoder: &TextEncoder) -> anyhow::Result<(Vec<Answer>, Vec<LeftOut>)> {
        let (rows, mut left_out) =
            read_rows(self.data, &answers::COLUMNS, self.bad_lines, read_answer)?;
        let encoded: Vec<Result<Answer, (Origin, EncodeError)>> = rows
            .into_par_iter()
            .map(|(input, origin)| match encoder.encode(&input, false) {
                Ok(encoding) => {
                    Ok(Answer { ids: encoding.ids, prompt: Subject::of(&input).prompt, origin })
                }
                Err(error) => Err((origin, error)),
            })
            .collect();
        let mut answers = Vec::with_capacity(encoded.len());
        for answer in encoded {
            match (answer, self.bad_lines) {
                (Ok(answer), _) => answers.push(answer),
                (Err((origin, error)), BadLines::Drop) => {
                    let kind = match error {
                        EncodeError::TooLong { .. } => Reason::TooLong,
                        EncodeError::Empty => Reason::Empty,
                        _ => Reason::BadLine,
                    };
                    left_out.push(LeftOut { origin, reason: kind, detail: reason(&error) });
                }
                (Err((origin, error)), BadLines::Refuse) => {
                    anyhow::bail!("{origin}: {}", reason(&error));
                }
            }
        }
        let first = left_out.first().map_or(String::new(), |first| format!("; {first}"));
        ensure!(!answers.is_empty(), "no answer in {:?} can be used{first}", self.data);
        Ok((answers, left_out))
    }
}

/// The encoder's words are for those who send a request.
pub(in crate::train) fn reason(error: &EncodeError) -> String {
    match error {
        EncodeError::TooLong { tokens, limit } => {
            format!("{tokens} tokens, more than the model's context of {limit}")
        }
        other => other.to_string(),
    }
}

pub(in crate::train) fn read_answer(
    row: &Value,
    origin: &Origin,
) -> anyhow::Result<(Input, Origin)> {
    ensure!(row.is_object(), "expected an object with {ANSWER_FORMS}");
    let input = answer(row)?.with_context(|| format!("needs {ANSWER_FORMS}"))?;
    if let Input::Messages(messages) = &input {
        let last = messages.last().filter(|last| last.role == "assistant");
        let last = last.context("does not end with the assistant's answer")?;
        ensure!(!last.content.trim().is_empty(), "the answer is empty");
    }
    Ok((input, origin.clone()))
}

/// `count` of the answers, each with the same chance, in their order.
fn drawn(answers: Vec<Answer>, count: usize, seed: u64) -> Vec<Answer> {
    if answers.len() <= count {
        return answers;
    }
    let mut order: Vec<usize> = (0..answers.len()).collect();
    let (chosen, _) = order.partial_shuffle(&mut ChaCha8Rng::seed_from_u64(seed), count);
    let mut is_chosen = vec![false; answers.len()];
    chosen.iter().for_each(|&index| is_chosen[index] = true);
    let answers = answers.into_iter().zip(is_chosen);
    answers.filter_map(|(answer, is_chosen)| is_chosen.then_some(answer)).collect()
}

/// Names of files, without their folders.
fn names(files: &[PathBuf]) -> String {
    let mut names = String::new();
    for file in files {
        let comma = if names.is_empty() { "" } else { ", " };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // Writing to a string cannot fail.
        let _ = write!(names, "{comma}{name}");
    }
    names
}
