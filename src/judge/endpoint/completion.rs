//! The text of a chat completion.

use serde::Deserialize;

use crate::judge::session::AskError;
use crate::judge::session::shown;
use crate::judge::session::{Unjudged, UnjudgedReason};

/// What is read of `POST /v1/chat/completions`'s answer.
#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: CompletionMessage,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(expecting = "struct Message")]
struct CompletionMessage {
    content: Option<CompletionContent>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "data did not match any variant of untagged enum Content")]
enum CompletionContent {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// A part of a content: text, a refusal, or something else, which is passed over.
#[derive(Deserialize)]
struct ContentPart {
    text: Option<String>,
    refusal: Option<String>,
}

/// The text that a model wrote.
///
/// # Errors
/// A body that is no chat completion or empty, a refusal, or a text that was cut off.
pub(super) fn text(body: &str) -> Result<String, AskError> {
    let never = |reason, message: String| Err(AskError::Never(Unjudged::new(reason, message)));
    let Choice { message, finish_reason } = match choice(body) {
        Ok(choice) => choice,
        Err(unjudged) => return Err(AskError::Later { unjudged, after: None }),
    };
    let (mut text, mut refusal) = (String::new(), message.refusal.unwrap_or_default());
    match message.content {
        None => {}
        Some(CompletionContent::Text(whole)) => text = whole,
        Some(CompletionContent::Parts(parts)) => {
            for part in parts {
                text.push_str(&part.text.unwrap_or_default());
                refusal.push_str(&part.refusal.unwrap_or_default());
            }
        }
    }
    if !refusal.is_empty() {
        return never(UnjudgedReason::Refusal, shown(&refusal));
    }
    match finish_reason.as_deref() {
        Some("content_filter") => {
            let message = "the server filtered the answer (finish_reason content_filter)";
            never(UnjudgedReason::ContentFilter, message.to_owned())
        }
        Some("length") => {
            let message = "the answer was cut off (finish_reason length): raise --max-tokens";
            never(UnjudgedReason::Length, message.to_owned())
        }
        _ if text.trim().is_empty() => {
            let unjudged = Unjudged::new(UnjudgedReason::Empty, "the answer has no text");
            Err(AskError::Again(unjudged))
        }
        _ => Ok(text),
    }
}

fn choice(body: &str) -> Result<Choice, Unjudged> {
    let invalid = |message: String| {
        let message = format!("no chat completion, {message}: {}", shown(body));
        Unjudged::new(UnjudgedReason::InvalidResponse, message)
    };
    let completion: Completion =
        serde_json::from_str(body).map_err(|error| invalid(error.to_string()))?;
    completion.choices.into_iter().next().ok_or_else(|| invalid("`choices` is empty".to_owned()))
}
