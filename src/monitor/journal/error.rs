//! What the journal refuses.

use std::path::PathBuf;

use thiserror::Error;

/// A journal that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the journal {}: {message}", path.display())]
pub struct JournalError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub message: String,
}
