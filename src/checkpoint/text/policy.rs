//! How texts become token ids, in words for those who send them.

use serde::Serialize;
use serde_json::Value;

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
