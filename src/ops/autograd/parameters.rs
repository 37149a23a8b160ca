//! What a training changes: the tensors that are loaded, and adapters beside them.

use candle_core::Var;

use super::lora::LoraConfig;

/// A trained tensor, and the checkpoint tensors that its rows belong to.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Checkpoint tensor names with their number of rows; one for a tensor that is not stacked.
    pub parts: Vec<(String, usize)>,
    /// The values.
    pub var: Var,
    /// Whether weight decay applies: to matrices, not to norms and biases.
    pub decays: bool,
}

/// What a training changes.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Trains {
    /// Every parameter that is loaded.
    #[default]
    All,
    /// Heads, and adapters beside the linear layers; what they stand beside is frozen.
    Adapters {
        /// Which, and their size.
        lora: LoraConfig,
        /// Of the first values of `A`; `B` starts at 0.
        seed: u64,
    },
    /// Heads; the decoder is frozen.
    Heads,
}
