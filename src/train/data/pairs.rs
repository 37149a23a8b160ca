//! Preference pairs from JSONL and Parquet files.
//!
//! Two forms, told apart line by line (a row of Parquet is what a line of JSONL is):
//! - transcripts: `chosen` and `rejected` are whole conversations as text, with turns that begin
//!   `\n\nHuman:` and `\n\nAssistant:`;
//! - message lists: `chosen` and `rejected` are lists of `{role, content}`, or texts, the answer alone or the
//!   whole conversation, with `prompt` (also `question` or `instruction`; text or messages) before them, and
//!   `system` before that.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dropped::{Dropped, LeftOut, Reason};
use super::origin::Origin;
use crate::checkpoint::{EncodeError, Input, Message, TextEncoder};
use crate::monitor::prompt_fingerprint;

/// Two answers to one prompt. Both conversations end with the assistant's message.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The conversation with the preferred answer.
    pub chosen: Vec<Message>,
    /// The conversation with the other answer.
    pub rejected: Vec<Message>,
    /// Which part of its data set it belongs to, where the data says so.
    pub subset: Option<String>,
    /// How much better the chosen answer is, where the data says so: `margin`, or `score_chosen - score_rejected`.
    pub margin: Option<f32>,
    /// Where it stands.
    pub origin: Origin,
}

impl Pair {
    /// What both answers answer.
    fn prompt(&self) -> &[Message] {
        &self.chosen[..self.chosen.len() - 1]
    }
}

/// What to do with a line that is no preference pair, or that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadLines {
    /// Stop, and name it.
    #[default]
    Refuse,
    /// Leave it out, and name it.
    Drop,
}

/// Reads pairs from files, in their order; and the lines that were left out.
///
/// # Errors
/// A file that cannot be opened, no pair at all, or a bad line that is to be refused: names the file and the line.
pub fn read_pairs(
    files: &[PathBuf],
    bad_lines: BadLines,
) -> anyhow::Result<(Vec<Pair>, Vec<LeftOut>)> {
    let (pairs, bad) = read_rows(files, &COLUMNS, bad_lines, parse)?;
    let first = bad.first().map_or(String::new(), |first| format!("; {first}"));
    ensure!(!pairs.is_empty(), "no preference pair in {files:?}{first}");
    Ok((pairs, bad))
}

/// What `parse` makes of each line of some files, in their order; and what was left out, each with its file and line.
/// It looks at `columns` only.
///
/// # Errors
/// A file that cannot be opened, or a bad line that is to be refused: names the file and the line.
pub(crate) fn read_rows<T>(
    files: &[PathBuf],
    columns: &[&str],
    bad_lines: BadLines,
    parse: impl Fn(&Value, &Origin) -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<T>, Vec<LeftOut>)> {
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    for file in files {
        let values = super::rows::rows(file, columns)?;
        let file: Arc<Path> = Arc::from(file.as_path());
        for (line, value) in values {
            let origin = Origin { file: file.clone(), line };
            match (value.and_then(|value| parse(&value, &origin)), bad_lines) {
                (Ok(row), _) => rows.push(row),
                (Err(error), BadLines::Refuse) => return Err(error.context(origin.to_string())),
                (Err(error), BadLines::Drop) => {
                    let detail = format!("{error:#}");
                    bad.push(LeftOut { origin, reason: Reason::BadLine, detail });
                }
            }
        }
    }
    Ok((rows, bad))
}

fn parse(value: &Value, origin: &Origin) -> anyhow::Result<Pair> {
    ensure!(value.is_object(), "expected an object with `chosen` and `rejected`");
    let field = |name: &str| value.get(name).with_context(|| format!("no `{name}`"));
    let given = |name: &'static str| {
        value.get(name).filter(|value| !value.is_null()).map(|value| (name, value))
    };
    let mut prompt = match PROMPTS.iter().find_map(|&name| given(name)) {
        None => Vec::new(),
        Some((_, Value::String(text))) => vec![Message::new("user", text)],
        Some((name, list)) => messages(list).with_context(|| format!("`{name}`"))?,
    };
    match given("system") {
        None => {}
        Some((_, Value::String(text))) if text.is_empty() => {}
        Some((_, Value::String(text))) => prompt.insert(0, Message::new("system", text)),
        Some(_) => bail!("`system`: expected text"),
    }
    let number = |name: &'static str| -> anyhow::Result<Option<f64>> {
        let Some((_, value)) = given(name) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        Ok(Some(number.with_context(|| format!("`{name}`: expected a number"))?))
    };
    let scores = number("score_chosen")?.zip(number("score_rejected")?);
    let margin = number("margin")?.or(scores.map(|(chosen, rejected)| chosen - rejected));
    let side = |name: &str| -> anyhow::Result<Vec<Message>> {
        let mut conversation = prompt.clone();
        match field(name)? {
            Value::String(text) if prompt.is_empty() => conversation = transcript(text),
            Value::String(text) => conversation.push(Message::new("assistant", text)),
            list => {
                let answer = messages(list)?;
                // A whole conversation repeats the prompt.
                if !prompt.is_empty() && answer.starts_with(&prompt) {
                    conversation.clear();
                }
                conversation.extend(answer);
            }
        }
        match conversation.last() {
            Some(last) if last.role == "assistant" => Ok(conversation),
            _ => bail!("does not end with the assistant's answer"),
        }
    };
    let subset = match value.get("subset") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.clone()),
        Some(_) => bail!("`subset`: expected text"),
    };
    Ok(Pair {
        chosen: side("chosen").context("`chosen`")?,
        rejected: side("rejected").context("`rejected`")?,
        subset,
        margin: margin.map(|margin| margin as f32),
        origin: origin.clone(),
    })
}

/// Names of the column with the prompt.
const PROMPTS: [&str; 3] = ["prompt", "question", "instruction"];

/// Names of the columns that pairs have.
const COLUMNS: [&str; 10] = [
    "chosen",
    "rejected",
    "prompt",
    "question",
    "instruction",
    "system",
    "margin",
    "score_chosen",
    "score_rejected",
    "subset",
];

pub(in crate::train) fn messages(value: &Value) -> anyhow::Result<Vec<Message>> {
    let list = value.as_array().context("expected a list of messages")?;
    list.iter()
        .map(|message| {
            let text = |key: &str| {
                let text = message.get(key).and_then(Value::as_str);
                text.with_context(|| format!("a message without `{key}`"))
            };
            Ok(Message::new(text("role")?, text("content")?))
        })
        .collect()
}

/// Splits a transcript into its turns.
fn transcript(text: &str) -> Vec<Message> {
    const TURNS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    let next = |from: usize| {
        let turns = TURNS.iter().filter_map(|(marker, role)| {
            Some((from + text[from..].find(marker)?, marker.len(), *role))
        });
        turns.min()
    };
    let mut messages = Vec::new();
    let mut turn = next(0);
    while let Some((start, marker, role)) = turn {
        turn = next(start + marker);
        let end = turn.map_or(text.len(), |(start, ..)| start);
        messages.push(Message::new(role, text[start + marker..end].trim()));
    }
    messages
}

/// How pairs are divided into those that are trained on and those that are held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Seed of the shuffle.
    pub seed: u64,
    /// Pairs for training; without it, nine in ten.
    pub train_pairs: Option<usize>,
}

impl Split {
    /// Training pairs and held-out pairs. All pairs of one prompt are on the same side; a prompt
    /// whose pairs would exceed the training side's number is held out.
    pub fn apply(&self, pairs: Vec<Pair>) -> (Vec<Pair>, Vec<Pair>) {
        let target = self.train_pairs.unwrap_or(pairs.len() * 9 / 10);
        let mut by_prompt: HashMap<Vec<Message>, usize> = HashMap::new();
        let mut groups: Vec<Vec<Pair>> = Vec::new();
        for pair in pairs {
            let group = *by_prompt.entry(pair.prompt().to_vec()).or_insert(groups.len());
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(pair);
        }
        groups.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for group in groups {
            let side = if train.len() + group.len() <= target { &mut train } else { &mut held_out };
            side.extend(group);
        }
        (train, held_out)
    }
}

/// A pair as token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedPair {
    /// Ids of the preferred conversation.
    pub chosen: Vec<u32>,
    /// Ids of the other.
    pub rejected: Vec<u32>,
    /// [`prompt_fingerprint`].
    pub prompt: u64,
    /// As [`Pair::subset`].
    pub subset: Option<String>,
    /// As [`Pair::margin`].
    pub margin: Option<f32>,
    /// As [`Pair::origin`].
    pub origin: Origin,
}

impl EncodedPair {
    /// Tokens of both texts, those that they begin with in common counted once.
    pub fn computed_tokens(&self) -> usize {
        let same = self.chosen.iter().zip(&self.rejected).take_while(|(a, b)| a == b).count();
        self.chosen.len() + self.rejected.len() - same
    }
}

/// Which pairs are used.
#[derive(Debug, Clone, Copy)]
pub struct PairLimits {
    /// Longest sequence, in tokens.
    pub max_tokens: usize,
    /// Whether a pair that was there already is left out.
    pub deduplicate: bool,
}

/// Token ids of pairs, and the pairs that cannot be used.
///
/// # Errors
/// A chat template that fails.
pub fn encode_pairs(
    encoder: &TextEncoder,
    pairs: &[Pair],
    limits: PairLimits,
) -> anyhow::Result<(Vec<EncodedPair>, Dropped)> {
    let encode = |messages: &[Message]| {
        encoder.encode(&Input::Messages(messages.to_vec()), false).map(|encoding| encoding.ids)
    };
    let encoded: Vec<_> =
        pairs.par_iter().map(|pair| (encode(&pair.chosen), encode(&pair.rejected))).collect();
    let too_long = |tokens: usize, limit: usize| format!("{tokens} tokens, more than {limit}");
    let mut kept: Vec<EncodedPair> = Vec::with_capacity(pairs.len());
    let mut seen = HashSet::new();
    let mut dropped = Vec::new();
    for (encoded, pair) in encoded.into_iter().zip(pairs) {
        let mut drop = |reason, detail: String| {
            dropped.push(LeftOut { origin: pair.origin.clone(), reason, detail });
        };
        let is_empty =
            |side: &[Message]| side.last().is_none_or(|answer| answer.content.trim().is_empty());
        if is_empty(&pair.chosen) || is_empty(&pair.rejected) {
            drop(Reason::Empty, "an answer is empty".to_owned());
            continue;
        }
        let (chosen, rejected) = match encoded {
            (Ok(chosen), Ok(rejected)) => (chosen, rejected),
            (Err(EncodeError::TooLong { tokens, limit }), _)
            | (_, Err(EncodeError::TooLong { tokens, limit })) => {
                drop(Reason::TooLong, too_long(tokens, limit));
                continue;
            }
            (Err(error @ EncodeError::Empty), _) | (_, Err(error @ EncodeError::Empty)) => {
                drop(Reason::Empty, error.to_string());
                continue;
            }
            (Err(error), _) | (_, Err(error)) => {
                return Err(anyhow::Error::from(error).context(pair.origin.to_string()));
            }
        };
        let longest = chosen.len().max(rejected.len());
        if longest > limits.max_tokens {
            drop(Reason::TooLong, too_long(longest, limits.max_tokens));
        } else if chosen == rejected {
            drop(Reason::Identical, "both answers are the same".to_owned());
        } else if limits.deduplicate && !seen.insert((chosen.clone(), rejected.clone())) {
            drop(Reason::Duplicate, "an earlier pair is the same".to_owned());
        } else {
            kept.push(EncodedPair {
                chosen,
                rejected,
                prompt: prompt_fingerprint(pair.prompt()),
                subset: pair.subset.clone(),
                margin: pair.margin,
                origin: pair.origin.clone(),
            });
        }
    }
    Ok((kept, dropped.into()))
}
