//! The forms in which an input may be written, and their way to token ids.

use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, Type,
};
use utoipa::{PartialSchema, ToSchema};

use super::AppState;
use super::error::ApiError;
use super::{object, whole};
use crate::checkpoint::{EncodeError, Encoding, Input, Message, TextEncoder};
use crate::engine::Tokeniser;

/// One input of a request; exactly one of the forms.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "expected an object with one input")]
pub(super) struct InputItem {
    prompt: Option<Prompt>,
    response: Option<String>,
    #[serde(deserialize_with = "object::list_option")]
    messages: Option<Vec<Message>>,
    text: Option<String>,
    #[serde(deserialize_with = "whole::ids_option")]
    input_ids: Option<Vec<u32>>,
    log_probability: Option<f64>,
    reference_log_probability: Option<f64>,
}

/// A prompt: the user's text, or the conversation up to the answer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of {role, content} messages")]
pub(super) enum Prompt {
    Text(String),
    #[serde(deserialize_with = "object::list")]
    Messages(Vec<Message>),
}

impl Prompt {
    pub(super) fn into_messages(self) -> Vec<Message> {
        match self {
            Self::Text(text) => vec![Message::new("user", text)],
            Self::Messages(messages) => messages,
        }
    }
}

/// One of the forms; the fields of the others are left out or null.
impl PartialSchema for InputItem {
    fn schema() -> RefOr<Schema> {
        let null = || ObjectBuilder::new().schema_type(Type::Null);
        let or_null = |schema: RefOr<Schema>| AnyOfBuilder::new().item(schema).item(null());
        let forms: [&[(&str, RefOr<Schema>)]; 4] = [
            &[("prompt", Prompt::schema()), ("response", String::schema())],
            &[("messages", Vec::<Message>::schema())],
            &[("text", String::schema())],
            &[("input_ids", token_ids().into())],
        ];
        let fields = ["prompt", "response", "messages", "text", "input_ids"];
        let number = |description: &str| {
            let number = ObjectBuilder::new().schema_type(Type::Number);
            or_null(number.description(Some(description)).into())
        };
        let common = || {
            ObjectBuilder::new()
                .property(
                    "log_probability",
                    number("Of the response under the policy: its tokens' sum, in nats"),
                )
                .property("reference_log_probability", number("The same under the reference model"))
        };
        let form = |form: &[(&str, RefOr<Schema>)]| {
            fields.iter().fold(common(), |object, field| {
                match form.iter().find(|(name, _)| name == field) {
                    Some((_, schema)) => object.property(*field, or_null(schema.clone())),
                    None => object.property(*field, null()),
                }
            })
        };
        let any = forms.into_iter().fold(AnyOfBuilder::new(), |any, fields| {
            any.item(
                form(fields).additional_properties(Some(AdditionalProperties::FreeForm(false))),
            )
        });
        any.description(Some(FORMS)).into()
    }
}

impl ToSchema for InputItem {}

/// A list of token ids: whole numbers of 32 bits.
pub(super) fn token_ids() -> ArrayBuilder {
    let id =
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
    ArrayBuilder::new().items(id)
}

const FORMS: &str = "give one of: `prompt` with `response`, `messages`, `text`, `input_ids`";

impl InputItem {
    /// `log p - log p_ref` of the response, where both are sent.
    pub(super) fn log_ratio(&self) -> Option<f64> {
        Some(self.log_probability? - self.reference_log_probability?)
    }

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
                let mut messages = prompt.into_messages();
                messages.push(Message::new("assistant", response));
                Ok(Ok(Input::Messages(messages)))
            }
        }
    }
}

/// Why one input was not scored.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, ToSchema)]
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
pub(super) fn check_count(count: usize, state: &AppState) -> Result<(), ApiError> {
    if count == 0 {
        return Err(ApiError::invalid("/inputs", "at least one input is needed"));
    }
    check_not_too_many(count, state)
}

/// Checks that a request has not too many inputs.
pub(super) fn check_not_too_many(count: usize, state: &AppState) -> Result<(), ApiError> {
    let limit = state.config.limits.max_inputs;
    if count > limit {
        let message =
            format!("{count} inputs, the limit is {limit}; send them in several requests");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_inputs", message));
    }
    Ok(())
}

/// Something to score, or why there is nothing.
pub(super) type MaybeInput = Result<Input, ItemError>;

/// The inputs of the native API.
///
/// # Errors
/// An input that is written in several forms, or whose last message is not the assistant's.
pub(super) fn inputs(items: Vec<InputItem>) -> Result<Vec<MaybeInput>, ApiError> {
    items.into_iter().enumerate().map(|(index, item)| item.into_input(index)).collect()
}

/// An input that stands alone, as on a line of a file.
///
/// # Errors
/// Why it is none.
pub(crate) fn lone_input(value: serde_json::Value) -> Result<Input, String> {
    let item: InputItem = serde_json::from_value(value).map_err(|error| error.to_string())?;
    match item.into_input(0) {
        Ok(Ok(input)) => Ok(input),
        Ok(Err(error)) => Err(error.message),
        Err(error) => Err(error.into_message()),
    }
}

/// What happens to an input that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truncation {
    /// It is an item error.
    Refuse,
    /// Its last tokens are kept: at most so many, and at most the context.
    KeepEnd(usize),
}

impl Truncation {
    /// Keeps what the context holds, or refuses.
    pub(super) fn to_context(wanted: bool) -> Self {
        if wanted { Self::KeepEnd(usize::MAX) } else { Self::Refuse }
    }
}

/// Token ids of each input, or why it has none.
pub(super) type Encodings = Vec<Result<Encoding, ItemError>>;

/// Encodes a request's inputs off the event loop. An input that cannot be encoded fails alone.
///
/// # Errors
/// Where the work itself fails.
pub(super) async fn encode(
    tokeniser: &Tokeniser,
    inputs: Vec<MaybeInput>,
    truncation: Truncation,
) -> Result<Encodings, ApiError> {
    let encode = move |encoder: &TextEncoder, input: MaybeInput| -> Result<Encoding, ItemError> {
        let Truncation::KeepEnd(kept) = truncation else {
            return Ok(encoder.encode(&input?, false)?);
        };
        let mut encoding = encoder.encode(&input?, true)?;
        if encoding.ids.len() > kept {
            encoding.ids.drain(..encoding.ids.len() - kept);
            encoding.truncated = true;
        }
        Ok(encoding)
    };
    let encodings = tokeniser.encode_all(inputs, encode).await;
    encodings.map_err(|error| ApiError::internal(error.to_string()))
}
