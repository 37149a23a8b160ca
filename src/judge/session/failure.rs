//! Why there is no verdict.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::place::AnswerPlace;

/// Why a question has no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnjudgedReason {
    /// The judge refused to answer.
    Refusal,
    /// A filter of the server's took the question or the answer.
    ContentFilter,
    /// The judge's answer was cut off at `--max-tokens`.
    Length,
    /// The question is longer than the judge's context.
    TooLong,
    /// The judge's answer was empty.
    Empty,
    /// The judge's answer has no JSON object, or several that fit.
    InvalidJson,
    /// The judge's answer has another shape than was asked for.
    WrongShape,
    /// The judge's answer contradicts itself.
    Inconsistent,
    /// The server's answer is no chat completion.
    InvalidResponse,
    /// The server asked to be left alone, every time (429).
    RateLimited,
    /// The server failed (5xx).
    ServerError,
    /// There was no answer in time.
    TimeOut,
    /// The server could not be reached, or closed the connection.
    Connection,
}

impl fmt::Display for UnjudgedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refusal => "refusal",
            Self::ContentFilter => "content_filter",
            Self::Length => "length",
            Self::TooLong => "too_long",
            Self::Empty => "empty",
            Self::InvalidJson => "invalid_json",
            Self::WrongShape => "wrong_shape",
            Self::Inconsistent => "inconsistent",
            Self::InvalidResponse => "invalid_response",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::TimeOut => "time_out",
            Self::Connection => "connection",
        })
    }
}

/// What there is instead of a verdict. Displayed as a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unjudged {
    /// Why.
    pub reason: UnjudgedReason,
    /// The same in words, with what was found.
    pub message: String,
}

impl Unjudged {
    pub(in crate::judge) fn new(reason: UnjudgedReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Unjudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// A question that has no verdict, and what it is about. Displayed as a message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnjudgedAnswer {
    #[serde(flatten)]
    pub(in crate::judge) place: AnswerPlace,
    /// Why there is none.
    #[serde(flatten)]
    pub unjudged: Unjudged,
}

impl fmt::Display for UnjudgedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.unjudged)
    }
}
