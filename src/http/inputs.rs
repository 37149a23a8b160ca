//! The forms in which an input may be written, and their way to token ids.

use axum::http::StatusCode;
use serde::Deserialize;

use super::AppState;
use super::error::ApiError;
use crate::checkpoint::{EncodeError, Encoding, Input, Message};
use crate::engine::Tokeniser;

/// One input of a request; exactly one of the forms.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "expected an object with one input")]
pub(super) struct InputItem {
    prompt: Option<Prompt>,
    response: Option<String>,
    messages: Option<Vec<Message>>,
    text: Option<String>,
    input_ids: Option<Vec<u32>>,
}

/// A prompt: the user's text, or the conversation up to the answer.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of {role, content} messages")]
enum Prompt {
    Text(String),
    Messages(Vec<Message>),
}

const FORMS: &str = "give one of: `prompt` with `response`, `messages`, `text`, `input_ids`";

impl InputItem {
    /// The input in its one form. An item without any text is an item error; an item of several
    /// forms is the request's error.
    fn into_input(self, index: usize) -> Result<Result<Input, ItemError>, ApiError> {
        let item = format!("/inputs/{index}");
        let forms = [
            self.prompt.is_some() || self.response.is_some(),
            self.messages.is_some(),
            self.text.is_some(),
            self.input_ids.is_some(),
        ];
        if forms.iter().filter(|form| **form).count() > 1 {
            return Err(ApiError::invalid(item, format!("more than one form; {FORMS}")));
        }
        let empty = |message: &str| Ok(Err(ItemError::new("empty_input", message)));
        if let Some(messages) = self.messages {
            if messages.last().is_some_and(|message| message.role != "assistant") {
                return Err(ApiError::invalid(
                    format!("{item}/messages/{}", messages.len() - 1),
                    "the last message must be the assistant's: it is the one that is scored",
                ));
            }
            return Ok(Ok(Input::Messages(messages)));
        }
        if let Some(text) = self.text {
            return Ok(Ok(Input::Text(text)));
        }
        if let Some(ids) = self.input_ids {
            return Ok(Ok(Input::Tokens(ids)));
        }
        match (self.prompt, self.response) {
            (None, None) => empty(FORMS),
            (Some(_), None) => empty("`prompt` without `response`"),
            (None, Some(_)) => empty("`response` without `prompt`; send it as `text`"),
            (Some(prompt), Some(response)) => {
                let mut messages = match prompt {
                    Prompt::Text(text) => vec![Message::new("user", text)],
                    Prompt::Messages(messages) => messages,
                };
                messages.push(Message::new("assistant", response));
                Ok(Ok(Input::Messages(messages)))
            }
        }
    }
}

/// Why one input was not scored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct ItemError {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl ItemError {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<EncodeError> for ItemError {
    fn from(error: EncodeError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Checks that a request has inputs, and not too many.
pub(super) fn check_count(items: &[InputItem], state: &AppState) -> Result<(), ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid("/inputs", "at least one input is needed"));
    }
    let limit = state.config.limits.max_inputs;
    if items.len() > limit {
        let message =
            format!("{} inputs, the limit is {limit}; send them in several requests", items.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_inputs", message));
    }
    Ok(())
}

/// Token ids of each input, or why it has none.
pub(super) type Encodings = Vec<Result<Encoding, ItemError>>;

/// Encodes a request's inputs off the event loop.
///
/// # Errors
/// Where the request as a whole is wrong; an input that cannot be encoded fails alone.
pub(super) async fn encode(
    tokeniser: &Tokeniser,
    items: Vec<InputItem>,
    truncate: bool,
) -> Result<Encodings, ApiError> {
    let inputs = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| item.into_input(index))
        .collect::<Result<Vec<_>, ApiError>>()?;
    let encodings = tokeniser.encode_all(inputs, truncate).await;
    encodings.map_err(|error| ApiError::internal(error.to_string()))
}
