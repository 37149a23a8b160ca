//! Hidden states from mistral.rs instead of this program's own decoder: for its in-situ quantisation, and models that are
//! spread over several GPUs. The reward head, and all above it, stay this program's.

#[cfg(not(feature = "mistralrs"))]
mod absent;
#[cfg(feature = "mistralrs")]
mod mistral;
#[cfg(feature = "mistralrs")]
mod view;

use serde::{Deserialize, Serialize};

use crate::model::Scorer;
use crate::ops::cpu::Precision;
#[cfg(not(feature = "mistralrs"))]
pub use absent::load;
#[cfg(feature = "mistralrs")]
pub use mistral::load;

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

/// What computes hidden states, where it is not this program, and what that costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct EncoderInfo {
    /// The engine's name
    pub engine: &'static str,
    /// Its version
    pub version: &'static str,
    /// In-situ quantisation of the weights; null for none
    pub quantise: Option<String>,
    /// Texts of one length that are computed at once: only with 1 does a reward depend on its text alone, to the last bit
    pub sequences: usize,
    /// Whether tokens that texts have in common are computed once
    pub shares_prefixes: bool,
}

/// A loaded model.
#[allow(missing_debug_implementations)]
pub struct Loaded {
    /// Gives its scores.
    pub scorer: Box<dyn Scorer>,
    /// Where its backbone runs.
    pub device: String,
    /// Precision of products.
    pub precision: Precision,
    /// What computes hidden states.
    pub info: EncoderInfo,
}
