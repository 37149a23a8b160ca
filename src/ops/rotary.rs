//! Rotary embedding (RoPE, Su et al. 2021): its frequencies, and tables of them that are kept between batches.

use std::f64::consts::PI;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use super::AttentionShape;

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

/// What a table follows from.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rope {
    /// Channels that are rotated; even.
    channels: usize,
    theta: f64,
    scaling: RopeScaling,
}

impl Rope {
    fn of(shape: &AttentionShape) -> Self {
        Self {
            channels: shape.rotated_channels(),
            theta: shape.rope_theta,
            scaling: shape.rope_scaling,
        }
    }

    /// Radians from one position to the next, `[channels / 2]`. Each step is rounded to f32, as PyTorch's are: at
    /// position 2,000 one rounding is larger than everything else here.
    fn frequencies(&self) -> Vec<f32> {
        let powers = (0..self.channels / 2).map(|i| {
            let exponent = (2 * i) as f32 / self.channels as f32;
            self.theta.powf(f64::from(exponent)) as f32
        });
        match self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => powers.map(|p| 1.0 / p).collect(),
            RopeScaling::Linear { factor } => powers.map(|p| 1.0 / p / factor as f32).collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                let original = original as f32;
                let scaled = |power: f32| {
                    let frequency = 1.0 / power;
                    let wavelength = 2.0 * std::f32::consts::PI / frequency;
                    if wavelength < original / high {
                        return frequency;
                    }
                    if wavelength > original / low {
                        return frequency / factor;
                    }
                    let kept = (original / wavelength - low) / (high - low);
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                powers.map(scaled).collect()
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings: original,
                truncate,
                ..
            } => {
                let channels = self.channels as f64;
                // The channel whose frequency makes that many rotations in the original length.
                let channel = |rotations: f64| {
                    channels * (original as f64 / (rotations * 2.0 * PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (low, high) = (channel(beta_fast), channel(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(channels - 1.0));
                let high = if low == high { high + 0.001 } else { high };
                let scaled = |(i, power): (usize, f32)| {
                    let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    let kept = 1.0 - ramp;
                    1.0 / (factor * power) * (1.0 - kept) + 1.0 / power * kept
                };
                powers.enumerate().map(scaled).collect()
            }
            RopeScaling::LongRope { short_factor, .. } => {
                powers.zip(short_factor.values()).map(|(p, factor)| 1.0 / (factor * p)).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    fn amplitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. }
            | RopeScaling::LongRope { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }
}

/// Cosines and sines `[positions, rotated channels / 2]`.
#[derive(Debug)]
pub(in crate::ops) struct Rotary {
    cosine: Vec<f32>,
    sine: Vec<f32>,
    rope: Rope,
}

/// The tables of a device, one for each kind of frequencies.
#[derive(Debug, Default)]
pub(in crate::ops) struct RotaryTables(Mutex<Vec<Arc<Rotary>>>);

impl RotaryTables {
    /// A table of at least `positions` positions.
    pub(in crate::ops) fn get(&self, positions: usize, shape: &AttentionShape) -> Arc<Rotary> {
        let rope = Rope::of(shape);
        let mut tables = self.0.lock();
        let known = tables.iter().position(|table| table.rope == rope);
        if let Some(table) = known.map(|index| &tables[index])
            && table.positions() >= positions
        {
            return table.clone();
        }
        let table = Arc::new(Rotary::new(positions.next_power_of_two(), rope));
        match known {
            Some(index) => tables[index] = table.clone(),
            None => tables.push(table.clone()),
        }
        table
    }
}

impl Rotary {
    fn new(positions: usize, rope: Rope) -> Self {
        let (frequencies, amplitude) = (rope.frequencies(), rope.amplitude());
        // The angle is rounded to f32 before its sine is taken, as PyTorch does.
        let (sine, cosine) = (0..positions)
            .flat_map(|position| {
                frequencies.iter().map(move |f| {
                    let (sine, cosine) = f64::from(position as f32 * f).sin_cos();
                    (sine as f32 * amplitude, cosine as f32 * amplitude)
                })
            })
            .unzip();
        Self { cosine, sine, rope }
    }

    fn positions(&self) -> usize {
        self.cosine.len() / (self.rope.channels / 2)
    }

    /// Cosines and sines of all positions, `[positions, rotated channels / 2]` each.
    #[cfg(feature = "cuda")]
    pub(in crate::ops) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cosine, &self.sine)
    }

    /// Cosines and sines of a position, `[rotated channels / 2]` each.
    pub(in crate::ops) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.rope.channels / 2;
        let range = position * half..(position + 1) * half;
        (&self.cosine[range.clone()], &self.sine[range])
    }
}
