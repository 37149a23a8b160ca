//! What computes hidden states.

use serde::{Deserialize, Serialize};

/// What computes hidden states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderChoice {
    /// This program's decoder.
    #[default]
    Own,
    /// mistral.rs, where this program was built with it.
    #[serde(rename = "mistralrs")]
    MistralRs,
}

/// Settings of mistral.rs as an encoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// In-situ quantisation of the weights: a type of mistral.rs, as `q8_0` or `q4k`; empty for none.
    pub quantise: String,
    /// Texts of one length that are computed at once.
    pub sequences: usize,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self { quantise: String::new(), sequences: 1 }
    }
}
