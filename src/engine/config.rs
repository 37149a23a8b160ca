//! Settings of the engine.

use serde::{Deserialize, Serialize};

/// Settings of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Tokens of a batch. A longer single input is a batch of its own.
    pub token_budget: usize,
    /// Tokens of a batch while several runs are active and one of them has little waiting.
    pub turn_tokens: usize,
    /// Tokens that may wait. A request that would exceed it is refused, unless nothing waits.
    pub queue_tokens: usize,
    /// Threads that tokenise long inputs; 0 for one a processor.
    pub tokeniser_threads: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { token_budget: 8192, turn_tokens: 512, queue_tokens: 1 << 20, tokeniser_threads: 0 }
    }
}
