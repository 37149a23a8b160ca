//! Where a row stands.

use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::rows::is_parquet;

/// A line of a data file, or a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The file.
    #[serde(serialize_with = "as_displayed")]
    pub file: Arc<Path>,
    /// Its number, from 1.
    pub line: usize,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = if is_parquet(&self.file) { "row" } else { "line" };
        write!(f, "{}, {unit} {}", self.file.display(), self.line)
    }
}

fn as_displayed<S: Serializer>(file: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&file.display())
}
