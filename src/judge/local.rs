//! A judge on this machine: a language model in mistral.rs, which a grammar lets write nothing but the answer's form.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::checkpoint::{EncodeError, Message};
use crate::generate::{Finish, Generator, GeneratorSettings, Sampling};
use crate::judge::session::shown;
use crate::judge::session::{AskError, Judge, Question};
use crate::judge::session::{Unjudged, UnjudgedReason};

/// Temperature of the first attempt at a question, and of those after it: a greedy answer would be given again.
const TEMPERATURES: (f64, f64) = (0.0, 0.7);

/// A language model on this machine.
#[derive(Debug)]
pub struct LocalJudge {
    generator: Generator,
    /// With the weights' hash: two models of one name are two judges.
    name: String,
    max_tokens: usize,
}

impl LocalJudge {
    /// Loads the model, whose answers have at most `max_tokens` tokens.
    ///
    /// # Errors
    /// No tokens, or as [`Generator::load`].
    pub fn load(settings: &GeneratorSettings, max_tokens: usize) -> anyhow::Result<Self> {
        ensure!(max_tokens > 0, "--max-tokens: must be at least 1");
        let generator = Generator::load(settings)?;
        let quantised = settings.quantise.as_deref().map_or(String::new(), |q| format!(" {q}"));
        let name = format!("{} ({}{quantised})", generator.name(), generator.weights());
        Ok(Self { generator, name, max_tokens })
    }

    /// Token ids of a question. A chat template that knows no system message gets one turn.
    fn encode(&self, question: &Question) -> anyhow::Result<Vec<u32>> {
        let Question { system, user, .. } = question;
        let turns = [Message::new("system", *system), Message::new("user", user)];
        match self.generator.encode(&turns) {
            Err(error) if matches!(error.downcast_ref(), Some(EncodeError::Template(_))) => {
                let turn = Message::new("user", format!("{system}\n\n{user}"));
                self.generator.encode(&[turn])
            }
            encoded => encoded,
        }
    }
}

impl Judge for LocalJudge {
    fn name(&self) -> &str {
        &self.name
    }

    fn ask(&self, question: &Question, seed: u64) -> Result<String, AskError> {
        let prompt = self.encode(question).map_err(|error| match error.downcast_ref() {
            Some(EncodeError::TooLong { .. }) => {
                AskError::Never(Unjudged::new(UnjudgedReason::TooLong, error.to_string()))
            }
            _ => AskError::Fatal(format!("{error:#}")),
        })?;
        let sampling = Sampling {
            temperature: if seed == 0 { TEMPERATURES.0 } else { TEMPERATURES.1 },
            max_new_tokens: self.max_tokens,
            seed,
            ..Sampling::default()
        };
        let mut schema = question.schema.schema.clone();
        // Small models find no end of a reason. A character is a quarter of a token, and a token at the worst.
        if let Some(reason) = schema.pointer_mut("/properties/reason") {
            reason["maxLength"] = json!(self.max_tokens);
        }
        // Nor of a list.
        if let Some(list) = schema.pointer_mut("/properties/behaviours") {
            let kinds = list.pointer("/items/enum").and_then(Value::as_array).map_or(1, Vec::len);
            list["maxItems"] = json!(kinds);
        }
        schema["x-guidance"] = json!({"whitespace_flexible": false});
        let written = self.generator.generate(&prompt, &sampling, 0, Some(&schema));
        let written = written.map_err(|error| AskError::Fatal(format!("{error:#}")))?;
        // The engine goes on, with special tokens, where the grammar has ended.
        let is_whole = serde_json::from_str::<Value>(&written.text).is_ok();
        match written.finish {
            Finish::Stop => Ok(written.text),
            Finish::Length if is_whole => Ok(written.text),
            // Another draw may come to its end.
            Finish::Length => Err(AskError::Again(Unjudged::new(
                UnjudgedReason::Length,
                format!("cut off after {} tokens: {}", written.tokens.len(), shown(&written.text)),
            ))),
        }
    }
}
