//! Linear weights as training has them: trained themselves, or frozen with low-rank adapters beside them.

use candle_core::{Result, Tensor};

/// A linear layer's weight `[out, in]`, several layers stacked by rows where they have one input.
#[derive(Debug, Clone)]
pub struct LinearWeight {
    pub(super) values: Tensor,
    /// `[out]`.
    pub(super) bias: Option<Tensor>,
    /// One for each layer of the stack; empty where none has an adapter.
    pub(super) adapters: Vec<StackPart>,
}

/// A layer of a stack.
#[derive(Debug, Clone)]
pub(super) struct StackPart {
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
        let parts = self.adapters.iter().map(|StackPart { rows, adapter }| match adapter {
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
