//! The forms in which an input may be written.

use serde::Deserialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, Type,
};
use utoipa::{PartialSchema, ToSchema};

use crate::checkpoint::{EncodeError, Input, Message};
use crate::json::{integer, object};

/// One input of a request; exactly one of the forms.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "expected an object with one input")]
pub(crate) struct InputItem {
    prompt: Option<Prompt>,
    response: Option<String>,
    #[serde(deserialize_with = "object::list_option")]
    messages: Option<Vec<Message>>,
    text: Option<String>,
    #[serde(deserialize_with = "integer::ids_option")]
    input_ids: Option<Vec<u32>>,
    log_probability: Option<f64>,
    reference_log_probability: Option<f64>,
}

/// A prompt: the user's text, or the conversation up to the answer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of {role, content} messages")]
pub(crate) enum Prompt {
    Text(String),
    #[serde(deserialize_with = "object::list")]
    Messages(Vec<Message>),
}

impl Prompt {
    pub(crate) fn into_messages(self) -> Vec<Message> {
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
pub(crate) fn token_ids() -> ArrayBuilder {
    let id =
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
    ArrayBuilder::new().items(id)
}

const FORMS: &str = "give one of: `prompt` with `response`, `messages`, `text`, `input_ids`";

impl InputItem {
    /// `log p - log p_ref` of the response, where both are sent.
    pub(crate) fn log_ratio(&self) -> Option<f64> {
        Some(self.log_probability? - self.reference_log_probability?)
    }

    /// The input in its one form. An item without any text is an item error; an item of several
    /// forms is the request's error.
    pub(crate) fn into_input(self, index: usize) -> Result<Result<Input, ItemError>, FormError> {
        let item = format!("/inputs/{index}");
        let forms = [
            self.prompt.is_some() || self.response.is_some(),
            self.messages.is_some(),
            self.text.is_some(),
            self.input_ids.is_some(),
        ];
        if forms.iter().filter(|form| **form).count() > 1 {
            return Err(FormError::new(item, format!("more than one form; {FORMS}")));
        }
        let empty = |message: &str| Ok(Err(ItemError::new("empty_input", message)));
        if let Some(messages) = self.messages {
            if messages.last().is_some_and(|message| message.role != "assistant") {
                return Err(FormError::new(
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
pub(crate) struct ItemError {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl ItemError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<EncodeError> for ItemError {
    fn from(error: EncodeError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// An input that has no one form.
#[derive(Debug)]
pub(crate) struct FormError {
    /// JSON pointer (RFC 6901) of the input, or of its field at fault.
    pub(crate) pointer: String,
    pub(crate) message: String,
}

impl FormError {
    fn new(pointer: String, message: impl Into<String>) -> Self {
        Self { pointer, message: message.into() }
    }
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
        Err(error) => Err(error.message),
    }
}
