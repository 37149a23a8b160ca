//! Preference pairs from JSONL files.
//!
//! Two forms, told apart line by line:
//! - transcripts: `chosen` and `rejected` are whole conversations as text, with turns that begin
//!   `\n\nHuman:` and `\n\nAssistant:`;
//! - message lists: `chosen` and `rejected` are lists of `{role, content}`, the answer alone or the
//!   whole conversation, with `prompt` (text or messages) before them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{EncodeError, Input, Message, TextEncoder};
use crate::monitor::prompt_fingerprint;

/// Two answers to one prompt. Both conversations end with the assistant's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The conversation with the preferred answer.
    pub chosen: Vec<Message>,
    /// The conversation with the other answer.
    pub rejected: Vec<Message>,
    /// Which part of its data set it belongs to, where the data says so.
    pub subset: Option<String>,
}

impl Pair {
    /// What both answers answer.
    fn prompt(&self) -> &[Message] {
        &self.chosen[..self.chosen.len() - 1]
    }
}

/// Reads pairs from files, in their order.
///
/// # Errors
/// A file that cannot be read, or a line that is no pair: names the file and the line.
pub fn read_pairs(files: &[PathBuf]) -> anyhow::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for file in files {
        for (number, line) in lines(file)?.enumerate() {
            let at = || format!("{}, line {}", file.display(), number + 1);
            let line = line.with_context(at)?;
            if !line.trim().is_empty() {
                pairs.push(parse(&line).with_context(at)?);
            }
        }
    }
    ensure!(!pairs.is_empty(), "no preference pair in {files:?}");
    Ok(pairs)
}

/// The lines of a file, which is unpacked where its name ends in `.gz`.
pub(crate) fn lines(file: &Path) -> anyhow::Result<impl Iterator<Item = std::io::Result<String>>> {
    let open = File::open(file).with_context(|| file.display().to_string())?;
    let reader: Box<dyn Read> = if file.extension().is_some_and(|extension| extension == "gz") {
        Box::new(MultiGzDecoder::new(open))
    } else {
        Box::new(open)
    };
    Ok(BufReader::new(reader).lines())
}

fn parse(line: &str) -> anyhow::Result<Pair> {
    let value: Value = serde_json::from_str(line).context("not valid JSON")?;
    let field = |name: &str| value.get(name).with_context(|| format!("no `{name}`"));
    let prompt = match value.get("prompt") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![Message::new("user", text)],
        Some(list) => messages(list).context("`prompt`")?,
    };
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
    })
}

fn messages(value: &Value) -> anyhow::Result<Vec<Message>> {
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    /// Ids of the preferred conversation.
    pub chosen: Vec<u32>,
    /// Ids of the other.
    pub rejected: Vec<u32>,
    /// [`prompt_fingerprint`].
    pub prompt: u64,
    /// As [`Pair::subset`].
    pub subset: Option<String>,
}

/// Pairs that were left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// One of the sequences has more than the allowed tokens.
    pub too_long: usize,
    /// Both sequences are the same.
    pub identical: usize,
    /// There was nothing to score.
    pub empty: usize,
}

/// Token ids of pairs; those that cannot be used are counted.
///
/// # Errors
/// A chat template that fails.
pub fn encode_pairs(
    encoder: &TextEncoder,
    pairs: &[Pair],
    max_tokens: usize,
) -> anyhow::Result<(Vec<EncodedPair>, Dropped)> {
    let encode = |messages: &[Message]| {
        encoder.encode(&Input::Messages(messages.to_vec()), false).map(|encoding| encoding.ids)
    };
    let encoded: Vec<_> =
        pairs.par_iter().map(|pair| (encode(&pair.chosen), encode(&pair.rejected))).collect();
    let origins = pairs.iter().map(|pair| (prompt_fingerprint(pair.prompt()), &pair.subset));
    let mut kept = Vec::with_capacity(pairs.len());
    let mut dropped = Dropped::default();
    for (pair, (prompt, subset)) in encoded.into_iter().zip(origins) {
        let (chosen, rejected) = match pair {
            (Ok(chosen), Ok(rejected)) => (chosen, rejected),
            (Err(EncodeError::TooLong { .. }), _) | (_, Err(EncodeError::TooLong { .. })) => {
                dropped.too_long += 1;
                continue;
            }
            (Err(EncodeError::Empty), _) | (_, Err(EncodeError::Empty)) => {
                dropped.empty += 1;
                continue;
            }
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        if chosen.len().max(rejected.len()) > max_tokens {
            dropped.too_long += 1;
        } else if chosen == rejected {
            dropped.identical += 1;
        } else {
            kept.push(EncodedPair { chosen, rejected, prompt, subset: subset.clone() });
        }
    }
    Ok((kept, dropped))
}
