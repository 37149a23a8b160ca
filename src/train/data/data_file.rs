//! Data files by their content.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::CheckpointError;

/// A data file by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// The file's name, without its folder.
    pub name: String,
    /// Digest of its bytes.
    pub sha256: String,
}

/// The names and digests of files.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn data_files(files: &[PathBuf]) -> anyhow::Result<Vec<DataFile>> {
    files
        .iter()
        .map(|file| {
            let bytes = std::fs::read(file).map_err(CheckpointError::io(file))?;
            Ok(DataFile {
                name: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        })
        .collect()
}
