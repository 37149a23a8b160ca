//! Responses to prompts, from files: a line a response, or a line a prompt.

use std::fmt;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::answers::answer;
use super::origin::Origin;
use crate::checkpoint::{Input, Message};

/// The forms of a line, for messages.
const FORMS: &str =
    "`prompt` and `response`, or `responses`; `instruction` and `output`; or `messages`";

/// The columns that [`responses`] looks at.
pub(crate) const RESPONSE_COLUMNS: [&str; 8] =
    ["prompt", "response", "messages", "text", "instruction", "input", "output", "responses"];

/// A response to a prompt.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    /// The conversation that it ends.
    pub(crate) input: Input,
    pub(crate) origin: Origin,
    /// Its number in a line's `responses`, from 1.
    pub(crate) number: Option<usize>,
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
    pub(crate) fn messages(&self) -> &[Message] {
        match &self.input {
            Input::Messages(messages) => messages,
            _ => &[],
        }
    }

    /// All of them but the response.
    pub(crate) fn prompt(&self) -> &[Message] {
        self.messages().split_last().map_or(&[], |(_, prompt)| prompt)
    }
}

/// The responses of a line, of which [`RESPONSE_COLUMNS`] are looked at.
///
/// # Errors
/// A line that is none of the forms: names the column.
pub(crate) fn responses(row: &Value, origin: &Origin) -> anyhow::Result<Vec<Response>> {
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
