//! Lines and pairs that a training or an evaluation leaves out, each with its place and the reason.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::origin::Origin;

/// Name of the file in a checkpoint that lists them.
pub(in crate::train) const DROPPED_FILE: &str = "dropped.jsonl";
/// How many of them are named on standard error.
const NAMED: usize = 20;

/// Why a line or a pair was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The line is no preference pair, or cannot be read.
    BadLine,
    /// One of the sequences has more than the allowed tokens.
    TooLong,
    /// Both sequences are the same.
    Identical,
    /// One of the answers is empty.
    Empty,
    /// An earlier pair has the same two sequences.
    Duplicate,
}

/// A line or a pair that was left out. As JSON, `{"file", "line", "reason", "detail"}`; displayed, as a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Where it stands.
    #[serde(flatten)]
    pub origin: Origin,
    /// Why it was left out.
    pub reason: Reason,
    /// The same in words, with what was found.
    pub detail: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.detail)
    }
}

/// Numbers of pairs that were left out, by reason, and the pairs themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// [`Reason::TooLong`].
    pub too_long: usize,
    /// [`Reason::Identical`].
    pub identical: usize,
    /// [`Reason::Empty`].
    pub empty: usize,
    /// [`Reason::Duplicate`].
    #[serde(default)]
    pub duplicate: usize,
    /// Every one of them; written to a file of its own.
    #[serde(skip)]
    pub pairs: Vec<LeftOut>,
}

impl From<Vec<LeftOut>> for Dropped {
    fn from(pairs: Vec<LeftOut>) -> Self {
        let count = |reason| pairs.iter().filter(|pair| pair.reason == reason).count();
        Self {
            too_long: count(Reason::TooLong),
            identical: count(Reason::Identical),
            empty: count(Reason::Empty),
            duplicate: count(Reason::Duplicate),
            pairs,
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { too_long, identical, empty, duplicate, .. } = self;
        write!(
            f,
            "{too_long} too long, {identical} identical, {empty} empty, {duplicate} duplicate"
        )
    }
}

/// Names the first of them on standard error.
pub fn name_left_out(left_out: &[LeftOut]) {
    for one in left_out.iter().take(NAMED) {
        eprintln!("left out: {one}");
    }
    if let Some(more) = left_out.len().checked_sub(NAMED + 1) {
        eprintln!("left out: {} more", more + 1);
    }
}

/// The bytes of [`DROPPED_FILE`].
pub(in crate::train) fn dropped_file(left_out: &[LeftOut]) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for one in left_out {
        serde_json::to_writer(&mut bytes, one)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}
