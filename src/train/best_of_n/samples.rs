//! The samples of each prompt, from files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::checkpoint::{Input, Message};
use crate::monitor::prompt_fingerprint;
use crate::train::answers::{self, answer};
use crate::train::data::{BadLines, Origin, read_rows};

/// The forms of a line, for messages.
const FORMS: &str =
    "`prompt` and `response`, or `responses`; `instruction` and `output`; or `messages`";
/// Characters of a prompt in a message.
const SHOWN: usize = 60;

/// A response to a prompt.
#[derive(Debug, Clone)]
pub(super) struct Response {
    /// The conversation that it ends.
    pub(super) input: Input,
    pub(super) origin: Origin,
    /// Its number in a line's `responses`, from 1.
    number: Option<usize>,
}

/// Where it stands.
impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(f, "{}, response {number}", self.origin),
            None => self.origin.fmt(f),
        }
    }
}

impl Response {
    /// The conversation's messages.
    pub(super) fn messages(&self) -> &[Message] {
        match &self.input {
            Input::Messages(messages) => messages,
            _ => &[],
        }
    }

    /// All of them but the response.
    fn prompt(&self) -> &[Message] {
        self.messages().split_last().map_or(&[], |(_, prompt)| prompt)
    }
}

/// The responses to each prompt, in the order in which they stand; the prompts in an order that does not depend on theirs.
///
/// # Errors
/// A file or line that cannot be read, and a prompt with fewer than `least` responses: names the file and the line.
pub(super) fn read_samples(files: &[PathBuf], least: usize) -> anyhow::Result<Vec<Vec<Response>>> {
    let columns = [&answers::COLUMNS[..], &["responses"]].concat();
    let (lines, _) = read_rows(files, &columns, BadLines::Refuse, read_line)?;
    let mut prompts: BTreeMap<u64, Vec<Response>> = BTreeMap::new();
    for response in lines.into_iter().flatten() {
        prompts.entry(prompt_fingerprint(response.prompt())).or_default().push(response);
    }
    ensure!(!prompts.is_empty(), "--samples: no sample in {files:?}");
    if let Some(responses) = prompts.values().find(|responses| responses.len() < least) {
        let prompt = responses[0].prompt().last().map_or("", |message| message.content.as_str());
        let shown: String = prompt.chars().take(SHOWN).collect();
        let more = if shown.len() < prompt.len() { ".." } else { "" };
        anyhow::bail!(
            "{}: the prompt {shown:?}{more} has {} responses, and --n asks for the best of {least}: give more responses, or \
             a lesser --n",
            responses[0].origin,
            responses.len()
        );
    }
    Ok(prompts.into_values().collect())
}

/// The responses of a line.
fn read_line(row: &Value, origin: &Origin) -> anyhow::Result<Vec<Response>> {
    ensure!(row.is_object(), "expected an object with {FORMS}");
    let Some(list) = row.get("responses").filter(|list| !list.is_null()) else {
        return Ok(vec![read_response(row, origin, None)?]);
    };
    let list = list.as_array().context("`responses`: expected a list of texts")?;
    ensure!(!list.is_empty(), "`responses` is empty");
    let one = |(index, response): (usize, &Value)| {
        let at = || format!("`responses`, number {}", index + 1);
        ensure!(response.is_string(), "{}: expected text", at());
        let row = json!({"prompt": row.get("prompt"), "response": response});
        read_response(&row, origin, Some(index + 1)).with_context(at)
    };
    list.iter().enumerate().map(one).collect()
}

fn read_response(row: &Value, origin: &Origin, number: Option<usize>) -> anyhow::Result<Response> {
    let input = answer(row)?.with_context(|| format!("needs {FORMS}"))?;
    let response = Response { input, origin: origin.clone(), number };
    ensure!(
        !response.messages().is_empty(),
        "a `text` does not say where its prompt ends: give {FORMS}"
    );
    let ends = response.messages().last().is_some_and(|last| last.role == "assistant");
    ensure!(ends && !response.prompt().is_empty(), "is no prompt with the assistant's response");
    Ok(response)
}
