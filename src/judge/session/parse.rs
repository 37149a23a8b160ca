//! Reading a judge's answer: one JSON object of a known shape, wherever it stands in the text.

use serde::de::{DeserializeOwned, IgnoredAny};

use super::failure::Unjudged;
use super::failure::UnjudgedReason;

/// Characters of an answer in a message.
const SHOWN: usize = 200;

/// What a judge decides.
pub(in crate::judge) trait Verdict: DeserializeOwned {
    /// # Errors
    /// What of it contradicts the rest.
    fn check(&self) -> Result<(), String>;
}

/// The verdict in a text, which may stand in a fence or between other words, if it is the only one there.
///
/// # Errors
/// No JSON object or several that fit ([`UnjudgedReason::InvalidJson`]), one of another shape
/// ([`UnjudgedReason::WrongShape`]), or one that contradicts itself ([`UnjudgedReason::Inconsistent`]).
pub(super) fn verdict<T: Verdict>(text: &str) -> Result<T, Unjudged> {
    let objects = objects(text);
    let mut fitting = Vec::new();
    let mut misfit = None;
    for object in &objects {
        match serde_json::from_str::<T>(object) {
            Ok(verdict) => fitting.push(verdict),
            Err(error) => misfit = misfit.or(Some(error)),
        }
    }
    let unjudged =
        |reason, message: String| Unjudged::new(reason, format!("{message}: {}", shown(text)));
    match (fitting.pop(), misfit) {
        (Some(verdict), _) if fitting.is_empty() => match verdict.check() {
            Ok(()) => Ok(verdict),
            Err(message) => Err(unjudged(UnjudgedReason::Inconsistent, message)),
        },
        (Some(_), _) => {
            Err(unjudged(UnjudgedReason::InvalidJson, "several verdicts in one answer".to_owned()))
        }
        (None, Some(error)) => Err(unjudged(UnjudgedReason::WrongShape, error.to_string())),
        (None, None) => {
            Err(unjudged(UnjudgedReason::InvalidJson, "no JSON object in the answer".to_owned()))
        }
    }
}

/// The JSON objects of a text that are part of no other.
fn objects(text: &str) -> Vec<&str> {
    let mut objects = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        let from = &rest[start..];
        let mut stream = serde_json::Deserializer::from_str(from).into_iter::<IgnoredAny>();
        rest = match stream.next() {
            Some(Ok(_)) => {
                let (object, after) = from.split_at(stream.byte_offset());
                objects.push(object);
                after
            }
            _ => &from[1..],
        };
    }
    objects
}

/// The beginning of a text, on one line.
pub(in crate::judge) fn shown(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    let more = if shown.len() < text.len() { ".." } else { "" };
    format!("{shown:?}{more}")
}
