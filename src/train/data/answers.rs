//! Answers of one model, from JSONL files: prompts with responses, in the forms that data sets have.

use anyhow::Context;
use serde_json::Value;

use super::pairs::messages;
use crate::checkpoint::{Input, Message};

/// The forms of a line, for messages.
pub(crate) const ANSWER_FORMS: &str =
    "`prompt` and `response`; `instruction` and `output`; `messages`; or `text`";

/// The forms of a line that is a prompt.
pub(in crate::train) const PROMPT_FORMS: &str = "`prompt`, `instruction` or `messages`";

/// The columns that [`prompt`] looks at.
pub(in crate::train) const PROMPT_COLUMNS: [&str; 4] =
    ["prompt", "instruction", "input", "messages"];

/// The columns that [`answer`] looks at.
pub(in crate::train) const COLUMNS: [&str; 7] =
    ["prompt", "response", "messages", "text", "instruction", "input", "output"];

/// What a line says was asked and answered, or `None` where it says nothing of that.
///
/// | columns | |
/// |---|---|
/// | `prompt`, `response` | the prompt as text or as messages |
/// | `instruction`, `input`, `output` | AlpacaFarm's; an `input` stands below its instruction, after an empty line |
/// | `messages` | the whole conversation |
/// | `text` | a conversation that the chat template was applied to |
///
/// # Errors
/// A column of another type, or a response without its prompt: names the column.
pub(crate) fn answer(row: &Value) -> anyhow::Result<Option<Input>> {
    if let Some(list) = given(row, "messages") {
        return Ok(Some(Input::Messages(messages(list).context("`messages`")?)));
    }
    if let Some(text) = text(row, "text")? {
        return Ok(Some(Input::Text(text.to_owned())));
    }
    let (mut conversation, response) = if let Some(response) = text(row, "response")? {
        (conversation(row)?.context("`response` needs its `prompt`")?, response)
    } else if let Some(output) = text(row, "output")? {
        (instruction(row)?.context("`output` needs its `instruction`")?, output)
    } else {
        return Ok(None);
    };
    conversation.push(Message::new("assistant", response));
    Ok(Some(Input::Messages(conversation)))
}

/// What a line says was asked, or `None` where it says nothing of that: `prompt`, `instruction` or `messages`, as those of
/// [`answer`].
///
/// # Errors
/// A column of another type: names the column.
pub(in crate::train) fn prompt(row: &Value) -> anyhow::Result<Option<Vec<Message>>> {
    if let Some(list) = given(row, "messages") {
        return Ok(Some(messages(list).context("`messages`")?));
    }
    match conversation(row)? {
        None => instruction(row),
        found => Ok(found),
    }
}

fn given<'a>(row: &'a Value, name: &str) -> Option<&'a Value> {
    row.get(name).filter(|value| !value.is_null())
}

fn text<'a>(row: &'a Value, name: &str) -> anyhow::Result<Option<&'a str>> {
    let Some(value) = given(row, name) else { return Ok(None) };
    Ok(Some(value.as_str().with_context(|| format!("`{name}`: expected text"))?))
}

/// `prompt`, as text or as messages.
fn conversation(row: &Value) -> anyhow::Result<Option<Vec<Message>>> {
    match given(row, "prompt") {
        Some(Value::String(text)) => Ok(Some(vec![Message::new("user", text)])),
        Some(list) => Ok(Some(messages(list).context("`prompt`")?)),
        None => Ok(None),
    }
}

/// `instruction`, with its `input` where there is one.
fn instruction(row: &Value) -> anyhow::Result<Option<Vec<Message>>> {
    let Some(instruction) = text(row, "instruction")? else { return Ok(None) };
    let prompt = match text(row, "input")? {
        None | Some("") => instruction.to_owned(),
        Some(input) => format!("{instruction}\n\n{input}"),
    };
    Ok(Some(vec![Message::new("user", prompt)]))
}
