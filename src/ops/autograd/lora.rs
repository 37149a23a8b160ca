//! Which linear layers get low-rank adapters, and what these begin with.

use serde::{Deserialize, Serialize};

use crate::ops::batch::standard_normal;

/// First of the random streams that adapters begin from, beside those of other initial weights.
const ADAPTERS: u64 = 3 << 32;

/// Linear layers of a decoder, by the last parts of their names.
const LINEAR_LAYERS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Low-rank adaptation (LoRA, Hu et al. 2022): `W + alpha / rank * B A`, with W frozen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// Scale of the product, times `rank`.
    pub alpha: f64,
    /// Last parts of the names of the linear layers that get adapters, as `q_proj`.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self { rank: 16, alpha: 32.0, targets: targets.map(str::to_owned).to_vec() }
    }
}

impl LoraConfig {
    /// Factor of `B A`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// First values of adapter number `number`'s `A`, `[rank, columns]`: its rows have a norm of about 1. `B` starts at 0.
    pub(in crate::ops) fn initial_a(&self, seed: u64, number: usize, columns: usize) -> Vec<f32> {
        let deviation = 1.0 / (columns as f32).sqrt();
        let mut values = standard_normal(seed, ADAPTERS + number as u64, self.rank * columns);
        values.iter_mut().for_each(|value| *value *= deviation);
        values
    }

    /// Refuses settings that cannot be.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.rank > 0, "lora.rank: must be at least 1");
        anyhow::ensure!(
            self.alpha > 0.0 && self.alpha.is_finite(),
            "lora.alpha: must be positive and finite"
        );
        anyhow::ensure!(!self.targets.is_empty(), "lora.targets: name at least one linear layer");
        for target in &self.targets {
            anyhow::ensure!(
                LINEAR_LAYERS.contains(&target.as_str()),
                "lora.targets: `{target}` is none of {LINEAR_LAYERS:?}"
            );
        }
        Ok(())
    }

    /// Whether the layer with this weight, `....q_proj.weight`, gets an adapter.
    pub fn adapts(&self, weight: &str) -> bool {
        let layer = weight.strip_suffix(".weight").unwrap_or(weight);
        let last = layer.rsplit('.').next().unwrap_or(layer);
        self.targets.iter().any(|target| target == last)
    }
}

/// Name of an adapter's `A` or `B` beside the weight `....q_proj.weight`, as PEFT has it: `....q_proj.lora_A.weight`.
pub fn adapter_name(weight: &str, factor: char) -> String {
    format!("{}.lora_{factor}.weight", weight.strip_suffix(".weight").unwrap_or(weight))
}
