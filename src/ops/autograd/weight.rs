//! Linear weights as training has them: trained themselves, or frozen with low-rank adapters beside them.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::ops::standard_normal;

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

/// A linear layer's weight `[out, in]`, several layers stacked by rows where they have one input.
#[derive(Debug, Clone)]
pub struct LinearWeight {
    pub(super) values: Tensor,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
    /// One for each layer of the stack; empty where none has an adapter.
    pub(super) adapters: Vec<Part>,
}

/// A layer of a stack.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) rows: usize,
    pub(super) adapter: Option<Adapter>,
}

/// `A` `[rank, in]` and `B` `[rows, rank]`.
#[derive(Debug, Clone)]
pub(super) struct Adapter {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) scale: f64,
}

impl LinearWeight {
    /// `x W^T` with its bias, of which `product` computes each product.
    pub(super) fn apply(
        &self,
        x: &Tensor,
        product: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let y = product(x, &self.values, self.bias.as_ref())?;
        if self.adapters.is_empty() {
            return Ok(y);
        }
        let count = x.dim(0)?;
        let parts = self.adapters.iter().map(|Part { rows, adapter }| match adapter {
            None => Tensor::zeros((count, *rows), x.dtype(), x.device()),
            Some(Adapter { a, b, scale }) => product(&(product(x, a, None)? * *scale)?, b, None),
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        match parts.as_slice() {
            [part] => y + part,
            parts => y + Tensor::cat(parts, 1)?,
        }
    }
}
