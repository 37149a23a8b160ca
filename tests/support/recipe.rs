//! Points for golden values, drawn as `golden/recipe.py` draws them; change both or neither.

use ndarray::{Array2, Axis};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Recipe {
    seed: u64,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    points: usize,
    centre: f64,
    step: f64,
    scale: f64,
}

impl Recipe {
    pub(crate) fn points(&self, dimension: usize) -> Array2<f64> {
        let mut random = SplitMix64(self.seed);
        let mut points = Array2::zeros((0, dimension));
        for group in &self.groups {
            let rows = Array2::from_shape_fn((group.points, dimension), |(index, coordinate)| {
                let steps = if coordinate == 0 { index as f64 } else { 0.0 };
                group.centre + group.step * steps + random.noise() * group.scale
            });
            points.append(Axis(0), rows.view()).unwrap();
        }
        points
    }
}

pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The sum of the four 16-bit fields of a word, less its mean.
    fn noise(&mut self) -> f64 {
        let word = self.next();
        let fields = [0, 16, 32, 48].map(|shift| (word >> shift & 0xffff) as i64);
        (fields.iter().sum::<i64>() - 131_070) as f64
    }
}

pub(crate) fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected.abs()
}
