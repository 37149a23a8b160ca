//! A row of a data file.

use serde_json::Value;

/// A row's number, from 1, and what stands there; or why it cannot be read. A file that cannot be read further ends
/// with the row that says so.
pub(in crate::train) type Row = (usize, anyhow::Result<Value>);

/// The error of a row after which there are no others.
pub(in crate::train) fn unreadable(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("the file cannot be read further: {error}")
}
