//! Token ids of an input, or why there are none.

use thiserror::Error;

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
