//! What decoders have beyond Llama.

use std::fmt;

/// Something that Llama has not, and a device may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DecoderPart {
    Biases,
    LayerNorm,
    Gelu,
    ParallelResidual,
    NormedResidual,
    QueryKeyNorm,
    ScaledEmbeddings,
    PartialRotary,
    SlidingWindow,
    SlidingLayers,
    SoftCap,
    ScoreScale,
    OwnTensorLayout,
}

impl fmt::Display for DecoderPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Biases => "biases",
            Self::LayerNorm => "layer norm",
            Self::Gelu => "GELU",
            Self::ParallelResidual => "parallel residuals",
            Self::NormedResidual => "norms before the residual",
            Self::QueryKeyNorm => "norms of queries and keys",
            Self::ScaledEmbeddings => "scaled embeddings",
            Self::PartialRotary => "rotary embedding of some channels",
            Self::SlidingWindow => "sliding windows",
            Self::SlidingLayers => "layers with attention of two kinds",
            Self::SoftCap => "soft-caps",
            Self::ScoreScale => "a scale of scores",
            Self::OwnTensorLayout => "tensors that are not laid out as Llama's",
        })
    }
}
