//! From text to the token ids that are scored: chat template, tokenizer, and one EOS at the end.

use std::io::{self, Write};
use std::path::Path;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error as TemplateError, ErrorKind, Value as TemplateValue, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use thiserror::Error;
use tokenizers::Tokenizer;

use super::{CONFIG_FILE, CheckpointError, DecoderConfig, read_json};

/// Name of the tokenizer's file in a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Name of the file that names the special tokens.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Name of the chat template's file.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, expecting = "expected a {role, content} message")]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// Something to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A conversation whose last message is the assistant's.
    Messages(Vec<Message>),
    /// Text to which a chat template was already applied; BOS is added where it is missing.
    Text(String),
    /// The same, with every special token in it but EOS: no BOS is added.
    ExactText(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Token ids, ready to be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The ids; the last one is EOS.
    pub ids: Vec<u32>,
    /// Whether tokens were cut off at the start.
    pub truncated: bool,
}

/// An input that cannot be scored; the others of its request can.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum EncodeError {
    #[error("the input holds no text")]
    Empty,
    #[error("{tokens} tokens, the limit is {limit}; send `truncate: true` to keep the end")]
    TooLong { tokens: usize, limit: usize },
    #[error("token id {id} is not in the vocabulary of {vocabulary}")]
    UnknownToken { id: u32, vocabulary: usize },
    #[error("{0}")]
    Template(String),
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

impl EncodeError {
    /// The item code of the HTTP API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "empty_input",
            Self::TooLong { .. } => "input_too_long",
            Self::UnknownToken { .. } | Self::Tokenizer(_) => "unknown_token",
            Self::Template(_) => "template_error",
        }
    }
}

/// Chat template, tokenizer and special tokens of a checkpoint.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    template: Option<Environment<'static>>,
    bos: Option<(String, u32)>,
    eos: (String, u32),
    /// Whether the tokenizer's own post-processor starts a text with BOS.
    starts_with_bos: bool,
    vocabulary: usize,
    limit: usize,
}

const TEMPLATE_NAME: &str = "chat";

/// A special token as `tokenizer_config.json` writes it: a string, or an object with `content`.
fn token_text(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

impl TextEncoder {
    /// Reads the tokenizer's files of a folder.
    ///
    /// # Errors
    /// Where `tokenizer.json` is missing or damaged, the EOS token is not named or unknown, or the
    /// chat template does not compile.
    pub(super) fn read(folder: &Path, decoder: &DecoderConfig) -> Result<Self, CheckpointError> {
        let file = folder.join(TOKENIZER_FILE);
        let bytes = std::fs::read(&file).map_err(CheckpointError::io(&file))?;
        let wrong = |message: String| CheckpointError::Tokenizer { file: file.clone(), message };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| wrong(e.to_string()))?;
        // A tokenizer.json may carry the truncation and padding of its training set-up.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| wrong(e.to_string()))?;

        let settings_file = folder.join(TOKENIZER_CONFIG_FILE);
        let settings: Value =
            if settings_file.exists() { read_json(&settings_file)? } else { Value::Null };
        let model: Value = read_json(&folder.join(CONFIG_FILE))?;
        let token = |name: &str| -> Option<(String, u32)> {
            if let Some(text) = token_text(settings.get(format!("{name}_token"))) {
                let id = tokenizer.token_to_id(&text)?;
                return Some((text, id));
            }
            let id = match model.get(format!("{name}_token_id"))? {
                Value::Array(ids) => ids.first()?.as_u64()?,
                id => id.as_u64()?,
            };
            let id = u32::try_from(id).ok()?;
            Some((tokenizer.id_to_token(id)?, id))
        };
        let bos = token("bos");
        let eos = token("eos").ok_or_else(|| CheckpointError::Tokenizer {
            file: settings_file.clone(),
            message: match token_text(settings.get("eos_token")) {
                Some(text) => format!("`eos_token`: tokenizer.json does not know {text:?}"),
                None => "no `eos_token`, nor an `eos_token_id` in config.json that tokenizer.json \
                         knows; a reward is read at the EOS"
                    .to_owned(),
            },
        })?;
        let empty = tokenizer.encode("", true).map_err(|e| wrong(e.to_string()))?;
        let starts_with_bos = empty.get_ids().first().copied() == bos.as_ref().map(|b| b.1)
            && bos.is_some()
            && !empty.get_ids().is_empty();

        let template_file = folder.join(TEMPLATE_FILE);
        let (template_file, source) = if template_file.exists() {
            let text = std::fs::read_to_string(&template_file)
                .map_err(CheckpointError::io(&template_file))?;
            (template_file, Some(text))
        } else {
            let text = match settings.get("chat_template") {
                Some(Value::String(text)) => Some(text.clone()),
                Some(Value::Array(named)) => named
                    .iter()
                    .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
                    .and_then(|t| token_text(t.get("template"))),
                _ => None,
            };
            (settings_file, text)
        };
        let template = source.map(|text| compile(&text)).transpose().map_err(|error| {
            CheckpointError::Template { file: template_file, message: format!("{error:#}") }
        })?;
        Ok(Self {
            tokenizer,
            template,
            bos,
            eos,
            starts_with_bos,
            vocabulary: decoder.vocab_size,
            limit: decoder.max_position_embeddings,
        })
    }

    /// Longest sequence that can be scored, EOS included, in tokens.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The conversation as the chat template writes it.
    ///
    /// # Errors
    /// Where the checkpoint has no template, or the template rejects the messages.
    pub fn render(&self, messages: &[Message]) -> Result<String, EncodeError> {
        let Some(environment) = &self.template else {
            return Err(EncodeError::Template(
                "this checkpoint has no chat template; send `text` or `input_ids`".to_owned(),
            ));
        };
        let rendered = environment.get_template(TEMPLATE_NAME).and_then(|template| {
            template.render(context! {
                messages => messages,
                bos_token => self.bos.as_ref().map(|bos| bos.0.as_str()).unwrap_or_default(),
                eos_token => self.eos.0,
                add_generation_prompt => false,
                tools => (),
                documents => (),
            })
        });
        rendered
            .map_err(|error| EncodeError::Template(format!("the chat template failed: {error:#}")))
    }

    /// Token ids of an input, exactly as they are scored: with one EOS at the end, and with BOS where
    /// the template or the tokenizer puts one, never twice. White space that a template writes after
    /// its last EOS is dropped, since the reward is read at the EOS.
    ///
    /// An input longer than [`TextEncoder::limit`] is an error, or loses its start where `truncate`
    /// is set.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn encode(&self, input: &Input, truncate: bool) -> Result<Encoding, EncodeError> {
        let mut ids = match input {
            Input::Messages(messages) => {
                if messages.is_empty() || messages.iter().all(|m| m.content.trim().is_empty()) {
                    return Err(EncodeError::Empty);
                }
                self.tokenise(&self.render(messages)?)?
            }
            Input::Text(text) => {
                let mut ids = self.tokenise(text)?;
                if ids.is_empty() {
                    return Err(EncodeError::Empty);
                }
                if let Some((_, bos)) = self.bos.as_ref().filter(|_| self.starts_with_bos)
                    && ids[0] != *bos
                {
                    ids.insert(0, *bos);
                }
                ids
            }
            Input::ExactText(text) => self.tokenise(text)?,
            Input::Tokens(ids) => ids.clone(),
        };
        if ids.is_empty() {
            return Err(EncodeError::Empty);
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            return Err(EncodeError::UnknownToken { id, vocabulary: self.vocabulary });
        }
        if ids.last() != Some(&self.eos.1) {
            ids.push(self.eos.1);
        }
        let truncated = ids.len() > self.limit;
        if truncated {
            if !truncate {
                return Err(EncodeError::TooLong { tokens: ids.len(), limit: self.limit });
            }
            ids.drain(..ids.len() - self.limit);
        }
        Ok(Encoding { ids, truncated })
    }

    fn tokenise(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let trimmed = text.trim_end();
        let text = if trimmed.ends_with(&self.eos.0) { trimmed } else { text };
        let encoding = self.tokenizer.encode_fast(text, false);
        Ok(encoding.map_err(|e| EncodeError::Tokenizer(e.to_string()))?.get_ids().to_vec())
    }
}

/// Compiles a chat template with the settings and helpers that Hugging Face renders it with. There
/// is no `strftime_now`: a reward must not depend on the day.
fn compile(source: &str) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<TemplateValue, TemplateError> {
            Err(TemplateError::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_template_owned(TEMPLATE_NAME, source.to_owned())?;
    Ok(environment)
}

/// The filter `tojson` as Hugging Face defines it: Python's `json.dumps`, which, unlike Jinja's own,
/// escapes no character for HTML.
fn to_json(value: &TemplateValue, options: Kwargs) -> Result<TemplateValue, TemplateError> {
    let mut json = Vec::new();
    let written = match options.get::<Option<usize>>("indent")? {
        Some(indent) => {
            let indent = vec![b' '; indent];
            let formatter = PrettyFormatter::with_indent(&indent);
            value.serialize(&mut Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut json, OneLine)),
    };
    options.assert_all_used()?;
    let failed = |error: String| TemplateError::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(json).map(TemplateValue::from).map_err(|error| failed(error.to_string()))
}

/// JSON on one line with Python's spaces after commas and colons.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
