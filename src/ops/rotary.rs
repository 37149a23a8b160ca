//! Tables of the rotary embedding, kept between batches.

use std::sync::Arc;

use parking_lot::Mutex;

use super::AttentionShape;

/// Cosines and sines `[positions, head_dim / 2]` (RoPE, Su et al. 2021).
#[derive(Debug)]
pub(in crate::ops) struct Rotary {
    cosine: Vec<f32>,
    sine: Vec<f32>,
    half: usize,
    theta: f64,
}

/// The tables of a device, one for each base and width.
#[derive(Debug, Default)]
pub(in crate::ops) struct RotaryTables(Mutex<Vec<Arc<Rotary>>>);

impl RotaryTables {
    /// A table of at least `positions` positions.
    pub(in crate::ops) fn get(&self, positions: usize, shape: &AttentionShape) -> Arc<Rotary> {
        let mut tables = self.0.lock();
        let same = |table: &Arc<Rotary>| {
            table.half == shape.head_dim / 2 && table.theta == shape.rope_theta
        };
        let known = tables.iter().position(same);
        if let Some(table) = known.map(|index| &tables[index])
            && table.positions() >= positions
        {
            return table.clone();
        }
        let table = Arc::new(Rotary::new(positions.next_power_of_two(), shape));
        match known {
            Some(index) => tables[index] = table.clone(),
            None => tables.push(table.clone()),
        }
        table
    }
}

impl Rotary {
    fn new(positions: usize, shape: &AttentionShape) -> Self {
        let half = shape.head_dim / 2;
        let inverse_frequencies: Vec<f32> = (0..half)
            .map(|i| {
                let exponent = (2 * i) as f32 / shape.head_dim as f32;
                // The power is rounded before it is inverted, as PyTorch does.
                1.0 / shape.rope_theta.powf(f64::from(exponent)) as f32
            })
            .collect();
        // The angle is rounded to f32 before its sine is taken, as PyTorch does: at position 2,000
        // that rounding is larger than everything else here.
        let (sine, cosine) = (0..positions)
            .flat_map(|position| {
                inverse_frequencies.iter().map(move |f| {
                    let (sine, cosine) = f64::from(position as f32 * f).sin_cos();
                    (sine as f32, cosine as f32)
                })
            })
            .unzip();
        Self { cosine, sine, half, theta: shape.rope_theta }
    }

    fn positions(&self) -> usize {
        self.cosine.len() / self.half
    }

    /// Cosines and sines of all positions, `[positions, head_dim / 2]` each.
    #[cfg(feature = "cuda")]
    pub(in crate::ops) fn tables(&self) -> (&[f32], &[f32]) {
        (&self.cosine, &self.sine)
    }

    /// Cosines and sines of a position, `[head_dim / 2]` each.
    pub(in crate::ops) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cosine[range.clone()], &self.sine[range])
    }
}
