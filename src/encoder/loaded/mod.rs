//! A model whose hidden states another engine computes.

use serde::Serialize;

use crate::model::Scorer;
use crate::ops::cpu::Precision;

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
pub struct EncodedModel {
    /// Gives its scores.
    pub scorer: Box<dyn Scorer>,
    /// Where its backbone runs.
    pub device: String,
    /// Precision of products.
    pub precision: Precision,
    /// What computes hidden states.
    pub info: EncoderInfo,
}
