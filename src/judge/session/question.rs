//! What a judge is asked.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::checkpoint::{Message, combined_hash};

/// The JSON object that an answer is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerSchema {
    /// Its name.
    pub name: &'static str,
    /// JSON schema: no properties but those named, and all of them required.
    pub schema: Value,
}

impl AnswerSchema {
    /// An object of these properties, which are written in this order.
    pub(in crate::judge) fn of(name: &'static str, properties: Value) -> Self {
        let names: Vec<&String> =
            properties.as_object().into_iter().flat_map(|o| o.keys()).collect();
        let schema = json!({
            "type": "object",
            "required": names,
            "properties": properties,
            "additionalProperties": false,
        });
        Self { name, schema }
    }
}

/// A question to a judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// What the judge is, and by which guidelines it decides.
    pub system: &'static str,
    /// What it decides on.
    pub user: String,
    /// The answer's form.
    pub schema: AnswerSchema,
}

impl Question {
    /// What a verdict is kept under: a hash of the question, of who is asked and of the guidelines' version.
    pub(in crate::judge) fn key(&self, judge: &str, guidelines: &str) -> String {
        combined_hash([guidelines, judge, self.system, &self.user])
    }
}

/// Parts of a question, each between tags that do not occur in any of them.
///
/// The parts are texts of other people's, which may look like tags: a hash of them all is in the tags, and no text holds
/// its own.
pub(in crate::judge) fn material(parts: &[(&str, &str)]) -> String {
    let hash = combined_hash(parts.iter().map(|(_, text)| *text));
    let tag = &hash[hash.len() - 12..];
    let mut material = String::new();
    for (name, text) in parts {
        // Writing to a string cannot fail.
        let _ = write!(material, "<{name}-{tag}>\n{text}\n</{name}-{tag}>\n");
    }
    material
}

/// A conversation as text, each message below its role.
pub(in crate::judge) fn transcript(messages: &[Message]) -> String {
    let message = |message: &Message| format!("[{}]\n{}", message.role, message.content);
    messages.iter().map(message).collect::<Vec<_>>().join("\n\n")
}
