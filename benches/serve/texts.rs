//! What is sent: real texts, or words.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use inform::checkpoint::{Checkpoint, Input, Message};
use inform::monitor::Role;
use inform::train::{BadLines, read_pairs};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Where texts come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextOptions {
    /// Preference pairs, JSONL, gzipped or not; random words without it
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Texts, from the start of the data; where it has fewer they come again, numbered
    #[arg(long, default_value_t = 1024)]
    pub(crate) texts: usize,
    /// Tokens of a text of random words, exactly
    #[arg(long, default_value_t = 150)]
    pub(crate) tokens: usize,
    /// Inputs of a request
    #[arg(long, default_value_t = 1)]
    pub(crate) inputs: usize,
    /// Ask for no latents
    #[arg(long)]
    pub(crate) no_latents: bool,
}

/// A request that is ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) body: Bytes,
    /// Of all its inputs.
    pub(crate) tokens: usize,
}

impl TextOptions {
    pub(crate) fn all(&self, checkpoint: &Checkpoint) -> anyhow::Result<Vec<Input>> {
        let texts: Vec<Input> = match &self.data {
            Some(file) => {
                let pairs = read_pairs(std::slice::from_ref(file), BadLines::Refuse)?.0.into_iter();
                let texts: Vec<_> = pairs.flat_map(|pair| [pair.chosen, pair.rejected]).collect();
                let count = texts.len().max(1);
                let numbered = |(index, mut text): (usize, Vec<Message>)| {
                    // Another text from its first token on: nothing is known of it, nothing shared.
                    if let Some(first) = text.first_mut().filter(|_| index >= count) {
                        first.content = format!("{} {}", index / count, first.content);
                    }
                    Input::Messages(text)
                };
                texts.into_iter().cycle().enumerate().map(numbered).take(self.texts).collect()
            }
            None => {
                let mut random = ChaCha8Rng::seed_from_u64(0);
                (0..self.texts)
                    .map(|_| words(checkpoint, self.tokens, &mut random))
                    .collect::<anyhow::Result<_>>()?
            }
        };
        ensure!(!texts.is_empty(), "no texts");
        Ok(texts)
    }

    /// The texts as requests.
    pub(crate) fn requests(&self, model: &Path, cache: bool) -> anyhow::Result<Vec<Prepared>> {
        let checkpoint = Checkpoint::open(model)?;
        let texts = self.all(&checkpoint)?;
        self.prepare(&checkpoint, &texts, cache, Role::Policy)
    }

    pub(crate) fn prepare(
        &self,
        checkpoint: &Checkpoint,
        texts: &[Input],
        cache: bool,
        role: Role,
    ) -> anyhow::Result<Vec<Prepared>> {
        texts
            .chunks(self.inputs.max(1))
            .map(|inputs| {
                let mut tokens = 0;
                for input in inputs {
                    tokens += checkpoint.encoder.encode(input, true)?.ids.len();
                }
                let inputs: Vec<_> = inputs.iter().map(as_json).collect();
                let mut body = json!({"inputs": inputs, "truncate": true, "role": role});
                if !cache {
                    body["cache"] = json!(false);
                }
                if self.no_latents {
                    body["return_latents"] = json!(false);
                }
                Ok(Prepared { body: body.to_string().into(), tokens })
            })
            .collect()
    }
}

fn as_json(input: &Input) -> serde_json::Value {
    match input {
        Input::Messages(messages) => json!({ "messages": messages }),
        Input::Text(text) | Input::ExactText(text) => json!({ "text": text }),
        Input::Tokens(ids) => json!({ "input_ids": ids }),
    }
}

const WORDS: [&str; 24] = [
    "the", "a", "river", "stone", "likes", "green", "water", "under", "seven", "people", "walk",
    "slowly", "and", "never", "ask", "why", "light", "falls", "on", "old", "houses", "again", "of",
    "bread",
];

/// A question and an answer of random words, so many that the whole has `tokens` tokens.
fn words(checkpoint: &Checkpoint, tokens: usize, random: &mut ChaCha8Rng) -> anyhow::Result<Input> {
    let make = |prompt: &[&str], response: &[&str]| {
        Input::Messages(vec![
            Message::new("user", prompt.join(" ")),
            Message::new("assistant", response.join(" ")),
        ])
    };
    // Words are not always one token: take another draw where the length is passed over.
    for _ in 0..1000 {
        let mut text: Vec<&str> = Vec::new();
        loop {
            text.extend(WORDS.choose(random));
            let split = text.len() / 2;
            let input = make(&text[..split], &text[split..]);
            let length = checkpoint.encoder.encode(&input, false)?.ids.len();
            if length == tokens {
                return Ok(input);
            }
            if length > tokens {
                break;
            }
            // Long texts need not be measured after each word.
            for _ in 0..(tokens - length) / 4 {
                text.push(WORDS[random.random_range(0..WORDS.len())]);
            }
        }
    }
    None.with_context(|| format!("no words give {tokens} tokens with this tokenizer"))
}
