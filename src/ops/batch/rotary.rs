//! Rotary embedding (RoPE, Su et al. 2021): its frequencies, and tables of them that are kept between batches.

use std::f64::consts::PI;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::layer::{AttentionShape, RopeScaling};

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
    pub(in crate::ops) cosine: Vec<f32>,
    pub(in crate::ops) sine: Vec<f32>,
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

    /// Cosines and sines of a position, `[rotated channels / 2]` each.
    pub(in crate::ops) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.rope.channels / 2;
        let range = position * half..(position + 1) * half;
        (&self.cosine[range.clone()], &self.sine[range])
    }
}
