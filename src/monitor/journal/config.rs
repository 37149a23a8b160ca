//! Settings of the journal.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Smallest limit of the file's size.
const MIN_BYTES: u64 = 1 << 20;

/// Settings of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// The file; empty for no journal.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Time between commits, in milliseconds: what a crash may lose. 0: a request is answered when its
    /// samples are committed.
    pub flush_ms: u64,
    /// Bytes that the file may take; 0 for no limit. The oldest samples and evaluations go first.
    pub max_bytes: u64,
    /// Age at which samples and evaluations go, in seconds; 0 for never.
    pub max_age_s: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), flush_ms: 1000, max_bytes: 1 << 30, max_age_s: 0 }
    }
}

impl JournalConfig {
    /// Whether there is to be a journal.
    pub fn is_on(&self) -> bool {
        !self.path.as_os_str().is_empty()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Says what is out of range.
    pub fn check(&self) -> Result<(), String> {
        if self.max_bytes > 0 && self.max_bytes < MIN_BYTES {
            return Err(format!("max_bytes must be 0 or at least {MIN_BYTES}"));
        }
        if self.flush_ms > 3_600_000 {
            return Err("flush_ms must be at most 3600000, an hour".to_owned());
        }
        Ok(())
    }
}
