//! What a decoder is made of, whatever its family.

use serde::Serialize;

use super::family::Family;
use super::part::DecoderPart;
use crate::checkpoint::files::CheckpointError;
use crate::layer::{AttentionShape, Gelu};

/// A decoder. The fields' names are Llama's keys of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DecoderConfig {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention of the layers, but for those that [`Architecture::sliding`] names.
    pub attention: AttentionShape,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// What sets the family apart from Llama.
    #[serde(skip_serializing_if = "Architecture::is_llama")]
    pub architecture: Architecture,
}

/// What sets families apart. The default is Llama: norm, attention, add; norm, SwiGLU, add; no biases.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Architecture {
    /// The family.
    pub family: Family,
    /// Kind of the norms.
    pub norm: NormKind,
    /// Kind of the MLP.
    pub mlp: MlpKind,
    /// How a layer's parts reach the residual stream.
    pub residual: Residual,
    /// Whether each head's queries and keys are normed before their rotary embedding.
    pub query_key_norm: bool,
    /// What adds biases.
    pub biases: Biases,
    /// Factor of the embeddings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f32>,
    /// Layers with an attention of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding: Option<SlidingLayers>,
}

/// Kind of the norms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Root mean square.
    #[default]
    Rms,
    /// Layer norm with bias.
    Layer,
}

/// Kind of the MLP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// `down(silu(gate x) * up x)`.
    #[default]
    SwiGlu,
    /// `down(gelu(gate x) * up x)`.
    GeGlu(Gelu),
    /// `down(gelu(up x))`.
    Plain(Gelu),
}

/// How a layer's parts reach the residual stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// `x += attention(norm(x))`, then `x += mlp(norm(x))`.
    #[default]
    Sequential,
    /// `x += attention(norm(x)) + mlp(norm(x))`.
    Parallel,
    /// `x += norm(attention(norm(x)))`, then `x += norm(mlp(norm(x)))`.
    Normed,
}

/// What adds biases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Biases {
    /// Projections to queries, keys and values.
    pub query_key_value: bool,
    /// Attention's output projection.
    pub attention_output: bool,
    /// A plain MLP.
    pub mlp: bool,
}

/// Layers whose attention is another than the others'.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlidingLayers {
    /// Their attention: heads as the others', a window, and maybe other rotary frequencies.
    pub attention: AttentionShape,
    /// Which layers they are, `[num_hidden_layers]`.
    pub layers: Vec<bool>,
}

impl Architecture {
    fn is_llama(&self) -> bool {
        *self == Self::default()
    }
}

impl DecoderConfig {
    /// Attention of a layer.
    pub fn attention_of(&self, layer: usize) -> &AttentionShape {
        match &self.architecture.sliding {
            Some(sliding) if sliding.layers[layer] => &sliding.attention,
            _ => &self.attention,
        }
    }

    /// What the decoder has beyond Llama.
    pub fn parts(&self) -> Vec<DecoderPart> {
        let Architecture { family, norm, mlp, residual, query_key_norm, biases, .. } =
            &self.architecture;
        let sliding = self.architecture.sliding.as_ref();
        let shapes =
            || [Some(&self.attention), sliding.map(|s| &s.attention)].into_iter().flatten();
        [
            (DecoderPart::Biases, *biases != Biases::default()),
            (DecoderPart::LayerNorm, *norm == NormKind::Layer),
            (DecoderPart::Gelu, *mlp != MlpKind::SwiGlu),
            (DecoderPart::ParallelResidual, *residual == Residual::Parallel),
            (DecoderPart::NormedResidual, *residual == Residual::Normed),
            (DecoderPart::QueryKeyNorm, *query_key_norm),
            (DecoderPart::ScaledEmbeddings, self.architecture.embedding_scale.is_some()),
            (DecoderPart::PartialRotary, shapes().any(|shape| shape.rotary_dim.is_some())),
            (DecoderPart::SlidingWindow, shapes().any(|shape| shape.window.is_some())),
            (DecoderPart::SlidingLayers, sliding.is_some()),
            (DecoderPart::SoftCap, shapes().any(|shape| shape.soft_cap.is_some())),
            (DecoderPart::ScoreScale, shapes().any(|shape| shape.score_scale.is_some())),
            (DecoderPart::OwnTensorLayout, family.has_own_layout()),
        ]
        .into_iter()
        .filter_map(|(part, present)| present.then_some(part))
        .collect()
    }

    /// Refuses a decoder with parts that are not `known`.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`], which says what `task` cannot do, and why.
    pub fn require(&self, known: &[DecoderPart], task: &str) -> Result<(), CheckpointError> {
        let missing: Vec<String> = self
            .parts()
            .into_iter()
            .filter(|part| !known.contains(part))
            .map(|part| part.to_string())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Unsupported(format!(
            "{task} does not support this {} model yet: {}",
            self.architecture.family,
            missing.join(", ")
        )))
    }
}
