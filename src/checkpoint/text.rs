//! From text to the token ids that are scored: chat template, tokenizer, and one EOS at the end.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use tokenizers::Tokenizer;

use super::date::Date;
use super::hash::file_hash;
use super::template::{ChatTemplate, SpecialTokens};
use super::{CheckpointError, CheckpointSource, DecoderConfig};

/// Name of the tokenizer's file in a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Name of the file that names the special tokens.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Key of [`TOKENIZER_CONFIG_FILE`] with the date that `strftime_now` of a template gives.
const DATE_KEY: &str = "chat_template_date";
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
    template: Option<ChatTemplate>,
    policy: TextPolicy,
    vocabulary: usize,
    limit: usize,
}

/// How texts become the token ids that are scored, and where on them the reward is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct TextPolicy {
    /// The token that begins texts, where the checkpoint has one
    pub bos: Option<SpecialToken>,
    /// What is done about it
    pub bos_policy: BosPolicy,
    /// The token that ends texts
    pub eos: SpecialToken,
    /// What is done about it
    pub eos_policy: EosPolicy,
    /// Where the reward is read
    pub pooling: Pooling,
    /// Hash of `tokenizer.json`
    pub tokenizer: String,
    /// Hash of the chat template; null where there is none
    pub template: Option<String>,
    /// The date that the template is told, whatever the day
    pub template_date: String,
}

/// A special token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct SpecialToken {
    /// As it is written in a text
    pub text: String,
    /// Its id
    pub id: u32,
}

/// What is done about BOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BosPolicy {
    /// The tokenizer adds one: it is put before a text that does not begin with it. Of messages the template alone
    /// decides.
    AddedWhereMissing,
    /// The tokenizer adds none: it stands where the text or the template has it.
    AsWritten,
}

/// What is done about EOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EosPolicy {
    /// Appended where it is not the last token already, but for white space.
    AppendedWhereMissing,
}

/// Where the reward is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// At the last token, which is the EOS.
    LastToken,
}

/// A special token as `tokenizer_config.json` writes it: a string, or an object with `content`.
pub(super) fn token_text(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

impl TextEncoder {
    /// Reads the tokenizer's files of a folder.
    ///
    /// # Errors
    /// Where `tokenizer.json` is missing or damaged, the EOS token is not named or unknown, or the
    /// chat template does not compile.
    pub(super) fn read(
        source: &CheckpointSource,
        decoder: &DecoderConfig,
    ) -> Result<Self, CheckpointError> {
        let file = source.path_of(TOKENIZER_FILE);
        let bytes = match source.read(TOKENIZER_FILE)? {
            Some(bytes) => bytes,
            // Says why it cannot be read.
            None => std::fs::read(&file).map_err(CheckpointError::io(&file))?,
        };
        let wrong = |message: String| CheckpointError::Tokenizer { file: file.clone(), message };
        let tokenizer_hash = file_hash(&bytes);
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| wrong(e.to_string()))?;
        // A tokenizer.json may carry the truncation and padding of its training set-up.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| wrong(e.to_string()))?;

        let settings_file = source.path_of(TOKENIZER_CONFIG_FILE);
        let settings: Value = match source.read(TOKENIZER_CONFIG_FILE)? {
            Some(text) => serde_json::from_slice(&text)
                .map_err(|source| CheckpointError::Json { file: settings_file.clone(), source })?,
            None => Value::Null,
        };
        let model = source.config_keys()?;
        let token = |name: &str| -> Option<SpecialToken> {
            if let Some(text) = token_text(settings.get(format!("{name}_token"))) {
                let id = tokenizer.token_to_id(&text)?;
                return Some(SpecialToken { text, id });
            }
            let id = match model.get(&format!("{name}_token_id"))? {
                Value::Array(ids) => ids.first()?.as_u64()?,
                id => id.as_u64()?,
            };
            let id = u32::try_from(id).ok()?;
            Some(SpecialToken { text: tokenizer.id_to_token(id)?, id })
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
        let first = empty.get_ids().first();
        let bos_policy = match first.is_some() && first == bos.as_ref().map(|bos| &bos.id) {
            true => BosPolicy::AddedWhereMissing,
            false => BosPolicy::AsWritten,
        };

        let template_file = source.path_of(TEMPLATE_FILE);
        let (template_file, template) = if let Some(text) = source.read(TEMPLATE_FILE)? {
            let text = String::from_utf8(text).map_err(|error| CheckpointError::Template {
                file: template_file.clone(),
                message: error.to_string(),
            })?;
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
            (settings_file.clone(), text)
        };
        let date = match settings.get(DATE_KEY) {
            None => Date::default(),
            Some(found) => found.as_str().and_then(Date::parse).ok_or_else(|| {
                let message = format!("found {found}, expected a date as \"2024-07-26\"");
                CheckpointError::Config { file: settings_file, key: DATE_KEY.to_owned(), message }
            })?,
        };
        let policy = TextPolicy {
            bos,
            bos_policy,
            eos,
            eos_policy: EosPolicy::AppendedWhereMissing,
            pooling: Pooling::LastToken,
            tokenizer: tokenizer_hash,
            template: template.as_ref().map(|text| file_hash(text.as_bytes())),
            template_date: date.to_string(),
        };
        let unusable =
            |message: String| CheckpointError::Template { file: template_file.clone(), message };
        let template = template
            .map(|text| ChatTemplate::compile(&text, date))
            .transpose()
            .map_err(&unusable)?;
        let encoder = Self {
            tokenizer,
            template,
            policy,
            vocabulary: decoder.vocab_size,
            limit: decoder.max_position_embeddings,
        };
        encoder.try_template().map_err(unusable)?;
        Ok(encoder)
    }

    /// Renders the simplest conversations: a template that fails on all of them will fail on any.
    fn try_template(&self) -> Result<(), String> {
        if self.template.is_none() {
            return Ok(());
        }
        let turns = [("system", "Be brief."), ("user", "Is it late?"), ("assistant", "Yes.")];
        let messages = turns.map(|(role, text)| Message::new(role, text));
        let [plain, with_system] = [&messages[1..], &messages].map(|turns| self.render(turns));
        match plain {
            Err(error) if with_system.is_err() => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// How texts become token ids.
    pub fn policy(&self) -> &TextPolicy {
        &self.policy
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
        self.rendered(messages, false)
    }

    fn rendered(&self, messages: &[Message], answer_comes: bool) -> Result<String, EncodeError> {
        let Some(template) = &self.template else {
            return Err(EncodeError::Template(
                "this checkpoint has no chat template; send `text` or `input_ids`".to_owned(),
            ));
        };
        let bos = self.policy.bos.as_ref().map(|bos| bos.text.as_str()).unwrap_or_default();
        let tokens = SpecialTokens { bos, eos: &self.policy.eos.text };
        template.render(messages, &tokens, answer_comes).map_err(EncodeError::Template)
    }

    /// Token ids after which a language model writes the assistant's answer: the conversation as the chat template writes
    /// it, with what begins the answer.
    ///
    /// # Errors
    /// See [`EncodeError`]; ids that leave no room for an answer of one token are too long.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, EncodeError> {
        if messages.iter().all(|message| message.content.trim().is_empty()) {
            return Err(EncodeError::Empty);
        }
        let text = self.rendered(messages, true)?;
        let encoding = self.tokenizer.encode_fast(text, false);
        let ids = encoding.map_err(|e| EncodeError::Tokenizer(e.to_string()))?.get_ids().to_vec();
        self.known(&ids)?;
        match ids.len() {
            0 => Err(EncodeError::Empty),
            tokens if tokens >= self.limit => {
                Err(EncodeError::TooLong { tokens, limit: self.limit - 1 })
            }
            _ => Ok(ids),
        }
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// An id that the tokenizer cannot write.
    pub fn decode(&self, ids: &[u32]) -> Result<String, EncodeError> {
        self.tokenizer.decode(ids, true).map_err(|e| EncodeError::Tokenizer(e.to_string()))
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
                if let Some(bos) = &self.policy.bos
                    && self.policy.bos_policy == BosPolicy::AddedWhereMissing
                    && ids[0] != bos.id
                {
                    ids.insert(0, bos.id);
                }
                ids
            }
            Input::ExactText(text) => self.tokenise(text)?,
            Input::Tokens(ids) => ids.clone(),
        };
        if ids.is_empty() {
            return Err(EncodeError::Empty);
        }
        self.known(&ids)?;
        let eos = self.policy.eos.id;
        if ids.last() != Some(&eos) {
            ids.push(eos);
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

    fn known(&self, ids: &[u32]) -> Result<(), EncodeError> {
        match ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            Some(&id) => Err(EncodeError::UnknownToken { id, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }

    fn tokenise(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let trimmed = text.trim_end();
        let text = if trimmed.ends_with(&self.policy.eos.text) { trimmed } else { text };
        let encoding = self.tokenizer.encode_fast(text, false);
        Ok(encoding.map_err(|e| EncodeError::Tokenizer(e.to_string()))?.get_ids().to_vec())
    }
}
