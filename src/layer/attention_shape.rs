//! Heads, rotary embedding and visible positions of an attention layer.

use serde::Serialize;

use super::rope_scaling::RopeScaling;

/// Shape of one attention layer, and its rotary embedding. The default has no heads: it stands for what a shape does not
/// name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (grouped-query attention).
    pub key_value_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Base of the rotary frequencies (RoPE, Su et al. 2021).
    pub rope_theta: f64,
    /// Channels of a head that are rotated, the first ones; all where it is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotary_dim: Option<usize>,
    /// What the frequencies are changed by, for longer texts than those of the first training.
    #[serde(skip_serializing_if = "RopeScaling::is_none")]
    pub rope_scaling: RopeScaling,
    /// Positions that a query sees, itself included (sliding window, Beltagy et al. 2020); all before it where it is
    /// `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Factor of the scores; `1 / sqrt(head_dim)` where it is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_scale: Option<f32>,
    /// `c` of scores that become `c tanh(score / c)` (Gemma 2, section 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    /// Columns of the fused projection `[q | k | v]`.
    pub fn qkv_columns(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_dim
    }

    /// Columns of the fused projection `[k | v]`.
    pub fn key_value_columns(&self) -> usize {
        2 * self.key_value_heads * self.head_dim
    }

    /// Columns of the queries, and of the attention output.
    pub fn output_columns(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of a head that are rotated.
    pub fn rotated_channels(&self) -> usize {
        self.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Factor of the scores.
    pub fn scale(&self) -> f32 {
        self.score_scale.unwrap_or_else(|| 1.0 / (self.head_dim as f32).sqrt())
    }

    /// The first position that the query at `position` sees.
    pub fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}
