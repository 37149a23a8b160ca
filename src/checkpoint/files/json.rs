//! JSON files, and numbers in them.

use std::path::Path;

use serde_json::{Value, json};

use super::error::CheckpointError;

/// Reads a JSON file of the checkpoint.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, CheckpointError> {
    let text = std::fs::read(file).map_err(CheckpointError::io(file))?;
    serde_json::from_slice(&text)
        .map_err(|source| CheckpointError::Json { file: file.to_owned(), source })
}

/// An f32 as the shortest decimal that reads back as the same f32, not as its f64 neighbour.
pub(in crate::checkpoint) fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, |number| json!(number))
}
