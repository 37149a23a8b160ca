//! From text to the token ids that are scored: chat template, tokenizer, and one EOS at the end.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::date::Date;
use super::encoding::{EncodeError, Encoding};
use super::message::{Input, Message};
use super::policy::{BosPolicy, EosPolicy, Pooling, SpecialToken, TextPolicy, token_text};
use super::template::{ChatTemplate, SpecialTokens};
use crate::checkpoint::decoder::DecoderConfig;
use crate::checkpoint::files::{
    CheckpointError, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, file_hash,
};
use crate::checkpoint::source::CheckpointSource;

/// Key of [`TOKENIZER_CONFIG_FILE`] with the date that `strftime_now` of a template gives.
const DATE_KEY: &str = "chat_template_date";
/// Chat template, tokenizer and special tokens of a checkpoint.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    policy: TextPolicy,
    vocabulary: usize,
    limit: usize,
}

impl TextEncoder {
    /// Reads the tokenizer's files of a folder.
    ///
    /// # Errors
    /// Where `tokenizer.json` is missing or damaged, the EOS token is not named or unknown, or the
    /// chat template does not compile.
    pub(in crate::checkpoint) fn read(
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
