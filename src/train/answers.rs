//! Answers of one model, from JSONL files: prompts with responses, in the forms that data sets have.

use anyhow::{Context, bail};
use serde_json::Value;

use super::data::messages;
use crate::checkpoint::{Input, Message};

/// The forms of a line, for messages.
pub(crate) const ANSWER_FORMS: &str =
    "`prompt` and `response`; `instruction` and `output`; `messages`; or `text`";

/// The columns that [`answer`] looks at.
pub(super) const COLUMNS: [&str; 7] =
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
    let given = |name: &str| row.get(name).filter(|value| !value.is_null());
    let text = |name: &str| -> anyhow::Result<Option<&str>> {
        let Some(value) = given(name) else { return Ok(None) };
        Ok(Some(value.as_str().with_context(|| format!("`{name}`: expected text"))?))
    };
    if let Some(list) = given("messages") {
        return Ok(Some(Input::Messages(messages(list).context("`messages`")?)));
    }
    if let Some(text) = text("text")? {
        return Ok(Some(Input::Text(text.to_owned())));
    }
    let (mut conversation, response) = if let Some(response) = text("response")? {
        match given("prompt") {
            Some(Value::String(text)) => (vec![Message::new("user", text)], response),
            Some(list) => (messages(list).context("`prompt`")?, response),
            None => bail!("`response` needs its `prompt`"),
        }
    } else if let Some(output) = text("output")? {
        let instruction = text("instruction")?.context("`output` needs its `instruction`")?;
        let prompt = match text("input")? {
            None | Some("") => instruction.to_owned(),
            Some(input) => format!("{instruction}\n\n{input}"),
        };
        (vec![Message::new("user", prompt)], output)
    } else {
        return Ok(None);
    };
    conversation.push(Message::new("assistant", response));
    Ok(Some(Input::Messages(conversation)))
}
