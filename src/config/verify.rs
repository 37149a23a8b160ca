//! Rewards that are checked before anything is served.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Rewards to check at the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyConfig {
    /// File of inputs with their rewards; empty for none.
    pub file: PathBuf,
    /// Largest difference from a reward whose line names none.
    pub tolerance: f64,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self { file: PathBuf::new(), tolerance: 1e-3 }
    }
}
