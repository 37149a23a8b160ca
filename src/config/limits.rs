//! What requests may ask, and who may ask.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Who may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// File of keys; empty for none: then everybody may ask.
    pub keys_file: PathBuf,
}

/// What a request may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Inputs of a request.
    pub max_inputs: usize,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Draws of the latent (`samples` of a request).
    pub max_samples: usize,
    /// Deadline of a request that names none, in milliseconds.
    pub default_deadline_ms: u64,
    /// Longest deadline that a request may name, in milliseconds.
    pub max_deadline_ms: u64,
    /// Connections at a time; further ones wait to be accepted.
    pub max_connections: usize,
    /// Time for a request's head to arrive, and for which a kept connection may be idle, in
    /// milliseconds.
    pub header_timeout_ms: u64,
    /// Time for a request's body to arrive, in milliseconds.
    pub body_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_inputs: 1024,
            max_body_bytes: 16 << 20,
            max_samples: 1024,
            default_deadline_ms: 30_000,
            max_deadline_ms: 600_000,
            max_connections: 16_384,
            header_timeout_ms: 60_000,
            body_timeout_ms: 60_000,
        }
    }
}
