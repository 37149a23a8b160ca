//! Weights of a training: parameters, or frozen tensors, some with adapters beside them.

use candle_core::{Tensor, Var};

use super::device::AutogradOps;
use super::linear_weight::{Adapter, LinearWeight, StackPart};
use super::lora::adapter_name;
use super::norm::NormWeight;
use super::parameters::{Parameter, Trains};
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::ops::device::WeightOps;

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
        let tensor = Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
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
                Tensor::from_vec(values, shape, &candle_core::Device::Cpu).map_err(failed)
            }
        }
    }

    /// The adapters of a stack of linear layers; empty where it has none.
    pub(super) fn adapters(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Vec<StackPart>, CheckpointError> {
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
            Ok(StackPart { rows, adapter })
        };
        parts.iter().map(part).collect()
    }
}

fn failed(source: candle_core::Error) -> CheckpointError {
    CheckpointError::Tensor { source: Box::new(source) }
}

impl WeightOps for AutogradOps {
    type Weight = LinearWeight;
    type GatedWeight = LinearWeight;
    type Table = Tensor;

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<LinearWeight, CheckpointError> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let values = source.stacked(parts, columns)?;
        let values = self.decoder_tensor(parts, values, &[rows, columns], true)?;
        Ok(LinearWeight { values, bias: None, adapters: self.adapters(parts, columns)? })
    }

    fn biased_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        biases: &[&str],
        columns: usize,
    ) -> std::result::Result<LinearWeight, CheckpointError> {
        let weight = self.weight(source, parts, columns)?;
        let parts: Vec<(&str, usize)> =
            biases.iter().zip(parts).map(|(&name, &(_, rows))| (name, rows)).collect();
        let mut values = Vec::new();
        for &(name, rows) in &parts {
            values.extend(source.f32(name, &[rows])?);
        }
        let rows = values.len();
        let bias = self.decoder_tensor(&parts, values, &[rows], false)?;
        Ok(LinearWeight { bias: Some(bias), ..weight })
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<LinearWeight, CheckpointError> {
        self.weight(source, &[(gate, rows), (up, rows)], columns)
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<NormWeight, CheckpointError> {
        self.stored_scale(source, name, columns)
    }

    fn layer_scale(
        &self,
        source: &dyn TensorSource,
        scale: &str,
        bias: &str,
        columns: usize,
    ) -> std::result::Result<NormWeight, CheckpointError> {
        let norm = self.stored_scale(source, scale, columns)?;
        let values = source.f32(bias, &[columns])?;
        let bias = self.decoder_tensor(&[(bias, columns)], values, &[columns], false)?;
        Ok(NormWeight { bias: Some(bias), ..norm })
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Tensor, CheckpointError> {
        let values = source.f32(name, &[rows, columns])?;
        self.decoder_tensor(&[(name, rows)], values, &[rows, columns], true)
    }
}
