//! The inputs of a request on their way to token ids.

use axum::http::StatusCode;

use crate::checkpoint::{Encoding, Input, TextEncoder};
use crate::engine::Tokeniser;
use crate::http::state::{ApiError, AppState};
use crate::input::{InputItem, ItemError};

/// Checks that a request has inputs, and not too many.
pub(in crate::http) fn check_count(count: usize, state: &AppState) -> Result<(), ApiError> {
    if count == 0 {
        return Err(ApiError::invalid("/inputs", "at least one input is needed"));
    }
    check_not_too_many(count, state)
}

/// Checks that a request has not too many inputs.
pub(in crate::http) fn check_not_too_many(count: usize, state: &AppState) -> Result<(), ApiError> {
    let limit = state.config.limits.max_inputs;
    if count > limit {
        let message =
            format!("{count} inputs, the limit is {limit}; send them in several requests");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_inputs", message));
    }
    Ok(())
}

/// Something to score, or why there is nothing.
pub(in crate::http) type MaybeInput = Result<Input, ItemError>;

/// The inputs of the native API.
///
/// # Errors
/// An input that is written in several forms, or whose last message is not the assistant's.
pub(in crate::http) fn inputs(items: Vec<InputItem>) -> Result<Vec<MaybeInput>, ApiError> {
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            item.into_input(index).map_err(|error| ApiError::invalid(error.pointer, error.message))
        })
        .collect()
}

/// What happens to an input that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Truncation {
    /// It is an item error.
    Refuse,
    /// Its last tokens are kept: at most so many, and at most the context.
    KeepEnd(usize),
}

impl Truncation {
    /// Keeps what the context holds, or refuses.
    pub(in crate::http) fn to_context(wanted: bool) -> Self {
        if wanted { Self::KeepEnd(usize::MAX) } else { Self::Refuse }
    }
}

/// Token ids of each input, or why it has none.
pub(in crate::http) type Encodings = Vec<Result<Encoding, ItemError>>;

/// Encodes a request's inputs off the event loop. An input that cannot be encoded fails alone.
///
/// # Errors
/// Where the work itself fails.
pub(in crate::http) async fn encode(
    tokeniser: &Tokeniser,
    inputs: Vec<MaybeInput>,
    truncation: Truncation,
) -> Result<Encodings, ApiError> {
    let encode = move |encoder: &TextEncoder, input: MaybeInput| -> Result<Encoding, ItemError> {
        let Truncation::KeepEnd(kept) = truncation else {
            return Ok(encoder.encode(&input?, false)?);
        };
        let mut encoding = encoder.encode(&input?, true)?;
        if encoding.ids.len() > kept {
            encoding.ids.drain(..encoding.ids.len() - kept);
            encoding.truncated = true;
        }
        Ok(encoding)
    };
    let encodings = tokeniser.encode_all(inputs, encode).await;
    encodings.map_err(|error| ApiError::internal(error.to_string()))
}
