//! Sizes of models that are measured.

use inform::checkpoint::{Architecture, DecoderConfig};
use inform::layer::AttentionShape;

pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
}

/// SmolLM2-135M, a model of 1.4B of the Llama kind, and Llama-2-7B; or one that an emulated device can run.
pub(crate) fn shapes(small: bool) -> Vec<Shape> {
    let shape = |name, layers, hidden, inner, heads, key_value_heads, head_dim| Shape {
        name,
        layers,
        hidden,
        inner,
        heads,
        key_value_heads,
        head_dim,
    };
    if small {
        return vec![shape("small", 2, 64, 96, 4, 2, 16)];
    }
    vec![
        shape("135M", 30, 576, 1536, 9, 3, 64),
        shape("1.4B", 24, 2048, 5504, 16, 16, 128),
        shape("7B", 32, 4096, 11_008, 32, 32, 128),
    ]
}

impl Shape {
    /// With a small vocabulary, since tokens are only looked up.
    pub(crate) fn decoder(&self, layers: usize) -> DecoderConfig {
        DecoderConfig {
            vocab_size: 1024,
            hidden_size: self.hidden,
            intermediate_size: self.inner,
            num_hidden_layers: layers,
            attention: AttentionShape {
                heads: self.heads,
                key_value_heads: self.key_value_heads,
                head_dim: self.head_dim,
                rope_theta: 10_000.0,
                ..AttentionShape::default()
            },
            max_position_embeddings: 8192,
            rms_norm_eps: 1e-5,
            architecture: Architecture::default(),
        }
    }
}
