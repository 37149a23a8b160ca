//! Messages, and other inputs that are scored.

use serde::{Deserialize, Serialize};

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
