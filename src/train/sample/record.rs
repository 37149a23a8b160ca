//! What samples follow from.

use serde::{Deserialize, Serialize};

use crate::generate::Sampling;
use crate::train::data::DataFile;

/// What samples follow from; written beside them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// Name of the model.
    pub model: String,
    /// Its weights' hash.
    pub weights: String,
    /// In-situ quantisation of the weights.
    pub quantise: Option<String>,
    /// `cpu` or `cuda`: their samples differ, since their logits do in the last bits.
    pub device: String,
    /// Names and SHA-256 of the files with prompts.
    pub data: Vec<DataFile>,
    /// Samples of each prompt.
    pub samples: usize,
    /// How tokens were drawn.
    #[serde(flatten)]
    pub sampling: Sampling,
}
