//! What a training changes: the tensors that are loaded, and adapters beside them.

use candle_core::{Device, Tensor, Var};

use super::weight::{Adapter, Part};
use super::{AutogradOps, LoraConfig, NormWeight, adapter_name};
use crate::checkpoint::{CheckpointError, TensorSource};

/// A trained tensor, and the checkpoint tensors that its rows belong to.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Checkpoint tensor names with their number of rows; one for a tensor that is not stacked.
    pub parts: Vec<(String, usize)>,
    /// The values.
    pub var: Var,
    /// Whether weight decay applies: to matrices, not to norms and biases.
    pub decays: bool,
}

/// What a training changes.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Trains {
    /// Every parameter that is loaded.
    #[default]
    All,
    /// Heads, and adapters beside the linear layers; what they stand beside is frozen.
    Adapters {
        /// Which, and their size.
        lora: LoraConfig,
        /// Of the first values of `A`; `B` starts at 0.
        seed: u64,
    },
    /// Heads; the decoder is frozen.
    Heads,
}

impl AutogradOps {
    /// Every parameter loaded so far, in loading order.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.parameters.borrow().clone()
    }

    /// The scale of a norm as it is stored.
    pub(super) fn stored_scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> Result<NormWeight, CheckpointError> {
        let (values, offset) = source.stored(name, &[columns])?;
        let scale = self.decoder_tensor(&[(name, columns)], values, &[columns], false)?;
        Ok(NormWeight { scale, offset, bias: None })
    }

    pub(super) fn register(
        &self,
        parts: &[(&str, usize)],
        values: Vec<f32>,
        shape: &[usize],
        decays: bool,
    ) -> Result<Tensor, CheckpointError> {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)
            .and_then(|tensor| Var::from_tensor(&tensor))
            .map_err(failed)?;
        let handle = tensor.as_tensor().clone();
        self.parameters.borrow_mut().push(Parameter {
            parts: parts.iter().map(|&(name, rows)| (name.to_owned(), rows)).collect(),
            var: tensor,
            decays,
        });
        Ok(handle)
    }

    /// A tensor of the decoder: a parameter, or frozen where only adapters or heads are trained.
    pub(super) fn decoder_tensor(
        &self,
        parts: &[(&str, usize)],
        values: Vec<f32>,
        shape: &[usize],
        decays: bool,
    ) -> Result<Tensor, CheckpointError> {
        match self.trains {
            Trains::All => self.register(parts, values, shape, decays),
            Trains::Adapters { .. } | Trains::Heads => {
                Tensor::from_vec(values, shape, &Device::Cpu).map_err(failed)
            }
        }
    }

    /// The adapters of a stack of linear layers; empty where it has none.
    pub(super) fn adapters(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Vec<Part>, CheckpointError> {
        let Trains::Adapters { lora, seed } = &self.trains else { return Ok(Vec::new()) };
        if !parts.iter().any(|(name, _)| lora.adapts(name)) {
            return Ok(Vec::new());
        }
        let rank = lora.rank;
        let adapter = |name: &str, rows: usize| -> Result<_, CheckpointError> {
            let (a_name, b_name) = (adapter_name(name, 'A'), adapter_name(name, 'B'));
            // Numbered by how many parameters came before it.
            let a = lora.initial_a(*seed, self.parameters.borrow().len(), columns);
            let a = self.register(&[(&a_name, rank)], a, &[rank, columns], true)?;
            let b = vec![0.0; rows * rank];
            let b = self.register(&[(&b_name, rows)], b, &[rows, rank], true)?;
            Ok(Adapter { a, b, scale: lora.scale() })
        };
        let part = |&(name, rows): &(&str, usize)| {
            let adapter = lora.adapts(name).then(|| adapter(name, rows)).transpose()?;
            Ok(Part { rows, adapter })
        };
        parts.iter().map(part).collect()
    }
}

fn failed(source: candle_core::Error) -> CheckpointError {
    CheckpointError::Tensor { source: Box::new(source) }
}
