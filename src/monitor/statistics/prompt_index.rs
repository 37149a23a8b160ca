//! Distance to the SFT answer of the same prompt.
//!
//! It takes out what the prompt does to a latent. On real hacked answers in a latent space without a
//! bottleneck it told them apart where distances to the whole set told nothing.

use std::collections::HashMap;

use ndarray::{ArrayView1, ArrayView2};

use super::gram::squared_distance;

/// Rows of a baseline by their prompt.
#[derive(Clone, Debug, Default)]
pub struct PromptIndex(HashMap<u64, Vec<usize>>);

impl PromptIndex {
    /// An index of the rows whose prompt is known.
    pub fn new(prompts: &[Option<u64>]) -> Self {
        let mut rows: HashMap<u64, Vec<usize>> = HashMap::new();
        for (row, prompt) in prompts.iter().enumerate() {
            if let Some(prompt) = prompt {
                rows.entry(*prompt).or_default().push(row);
            }
        }
        Self(rows)
    }

    /// The distance from `latent`, `[d]`, to the nearest row of `baseline`, `[M, d]`, that answers
    /// `prompt`; `None` where no row does. Costs `O(d)` for each such row.
    pub fn distance(
        &self,
        prompt: u64,
        latent: ArrayView1<'_, f64>,
        baseline: ArrayView2<'_, f64>,
    ) -> Option<f64> {
        let rows = self.0.get(&prompt)?.iter().filter(|row| **row < baseline.nrows());
        rows.map(|&row| squared_distance(latent, baseline.row(row)).sqrt()).min_by(f64::total_cmp)
    }
}
