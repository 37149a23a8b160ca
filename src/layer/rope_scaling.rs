//! How rotary frequencies are scaled for texts longer than those of the first training.

use serde::Serialize;

/// How rotary frequencies are changed so that a model takes longer texts than it was first trained on. Names and numbers
/// are those of `config.json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
// Shapes are copied once a layer; factors elsewhere would cost them that.
#[allow(clippy::large_enum_variant)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    #[serde(rename = "default")]
    None,
    /// All divided by `factor` (Chen et al. 2023).
    Linear {
        /// Above 0.
        factor: f64,
    },
    /// The base grows with the text, beyond `max_position_embeddings` tokens. Texts are not longer than that here, and up
    /// to there nothing changes.
    Dynamic {
        /// Above 0.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones left, between them by degrees (Llama 3.1).
    Llama3 {
        /// Above 0.
        factor: f32,
        /// Periods in `original_max_position_embeddings` below which a frequency is low.
        low_freq_factor: f32,
        /// Periods above which it is high; above `low_freq_factor`.
        high_freq_factor: f32,
        /// Tokens of a text in the first training.
        original_max_position_embeddings: usize,
    },
    /// As [`RopeScaling::Llama3`], by degrees in the number of the channel; cosines and sines are scaled, too
    /// (Peng et al. 2023).
    Yarn {
        /// Above 0.
        factor: f32,
        /// What cosines and sines are multiplied by.
        attention_factor: f32,
        /// Periods in `original_max_position_embeddings` above which frequencies are left.
        beta_fast: f64,
        /// Periods below which they are divided by `factor`.
        beta_slow: f64,
        /// Tokens of a text in the first training.
        original_max_position_embeddings: usize,
        /// Whether the bounds of the degrees are rounded to whole channels.
        truncate: bool,
    },
    /// Each divided by a factor of its own, those for texts up to the length of the first training; longer ones are not
    /// taken here. Cosines and sines are scaled, too (Ding et al. 2024).
    #[serde(rename = "longrope")]
    LongRope {
        /// Above 0, one for each frequency.
        short_factor: RopeFactors,
        /// What cosines and sines are multiplied by.
        attention_factor: f32,
        /// Tokens of a text in the first training.
        original_max_position_embeddings: usize,
    },
}

/// A factor for each frequency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeFactors {
    count: usize,
    values: [f32; Self::MOST],
}

impl RopeFactors {
    /// Frequencies of heads with 256 channels.
    const MOST: usize = 128;

    /// `None` where they are more than the widest heads have frequencies.
    pub fn new(factors: &[f32]) -> Option<Self> {
        let mut values = [0.0; Self::MOST];
        values.get_mut(..factors.len())?.copy_from_slice(factors);
        Some(Self { count: factors.len(), values })
    }

    /// The factors in order of the channels.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.count]
    }
}

impl Serialize for RopeFactors {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.values().serialize(serializer)
    }
}

impl RopeScaling {
    /// Whether frequencies are left as they are.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}
