//! Weights on a device in training: what is trained in f32 with its gradient and moments, what products read in bf16.

use std::sync::Arc;

use half::bf16;

use super::CudaTraining;
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::ops::autograd::{Trains, adapter_name};
use crate::ops::cuda::Buffer;
use crate::ops::cuda::products::Block;

/// A tensor on the device. Trained, it takes 18 bytes an element, else 2 or 4.
#[derive(Debug)]
pub struct DeviceTensor {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// What products read; absent for a norm's scale.
    pub(super) rounded: Option<Buffer<bf16>>,
    /// The values in f32; absent where they are frozen and products read them.
    pub(super) values: Option<Buffer<f32>>,
    /// Present where it is trained.
    pub(super) state: Option<State>,
}

/// What training keeps of a tensor besides its values.
#[derive(Debug)]
pub(super) struct State {
    pub(super) gradient: Buffer<f32>,
    pub(super) first: Buffer<f32>,
    pub(super) second: Buffer<f32>,
}

impl DeviceTensor {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.rows * self.columns
    }

    /// As a product reads it.
    pub(super) fn block(&self) -> Block {
        let address = self.rounded.as_ref().map_or(0, Buffer::address);
        let Self { rows, columns, .. } = *self;
        Block { address, rows, columns, stride: columns }
    }

    /// Its gradient, where it has one.
    pub(super) fn gradient(&self) -> Option<Block> {
        let Self { rows, columns, state, .. } = self;
        let address = state.as_ref()?.gradient.address();
        Some(Block { address, rows: *rows, columns: *columns, stride: *columns })
    }
}

/// A trained tensor, and the checkpoint tensors that its rows belong to.
#[derive(Debug, Clone)]
pub struct DeviceParameter {
    /// Checkpoint tensor names with their number of rows; one for a tensor that is not stacked.
    pub parts: Vec<(String, usize)>,
    /// The shape of the whole.
    pub shape: Vec<usize>,
    /// Whether weight decay applies: to matrices, not to norms.
    pub decays: bool,
    pub(super) tensor: Arc<DeviceTensor>,
}

/// A linear layer's weight `[out, in]`, several layers stacked by rows where they have one input.
#[derive(Debug)]
pub struct DeviceWeight {
    pub(super) tensor: Arc<DeviceTensor>,
    /// One for each layer of the stack; empty where none has an adapter.
    pub(super) adapters: Vec<LayerPart>,
}

/// A layer of a stack.
#[derive(Debug, Clone)]
pub(super) struct LayerPart {
    pub(super) rows: usize,
    pub(super) adapter: Option<Adapter>,
}

/// `A` `[rank, in]` and `B` `[rows, rank]` (LoRA).
#[derive(Debug, Clone)]
pub(super) struct Adapter {
    pub(super) a: Arc<DeviceTensor>,
    pub(super) b: Arc<DeviceTensor>,
    pub(super) scale: f32,
}

impl DeviceWeight {
    /// Whether anything of it changes.
    pub(super) fn is_trained(&self) -> bool {
        self.tensor.state.is_some() || !self.adapters.is_empty()
    }
}

/// What becomes of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A factor of products, or a table of embeddings.
    Factor,
    /// A norm's scale: no weight decay.
    Scale,
}

impl CudaTraining {
    /// Every parameter loaded so far, in loading order.
    pub fn parameters(&self) -> Vec<DeviceParameter> {
        self.parameters.borrow().clone()
    }

    /// A tensor of the decoder: trained, or frozen where only adapters are.
    pub(super) fn decoder_tensor(
        &self,
        parts: &[(&str, usize)],
        values: &[f32],
        columns: usize,
        role: Role,
    ) -> Result<Arc<DeviceTensor>, CheckpointError> {
        let tensor = self.tensor(values, columns, role, self.trains == Trains::All)?;
        if tensor.state.is_some() {
            let shape = match role {
                Role::Factor => vec![tensor.rows, columns],
                Role::Scale => vec![columns],
            };
            self.register(parts, shape, role, &tensor);
        }
        Ok(tensor)
    }

    /// The adapters of a stack of linear layers; empty where it has none.
    pub(super) fn adapters(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Vec<LayerPart>, CheckpointError> {
        let Trains::Adapters { lora, seed } = &self.trains else { return Ok(Vec::new()) };
        if !parts.iter().any(|(name, _)| lora.adapts(name)) {
            return Ok(Vec::new());
        }
        let rank = lora.rank;
        let trained = |name: String, values: &[f32], rows: usize, columns: usize| {
            let tensor = self.tensor(values, columns, Role::Factor, true)?;
            self.register(&[(&name, rows)], vec![rows, columns], Role::Factor, &tensor);
            Ok::<_, CheckpointError>(tensor)
        };
        let adapter = |name: &str, rows: usize| -> Result<_, CheckpointError> {
            // Numbered by how many parameters came before it, as on the CPU.
            let a = lora.initial_a(*seed, self.parameters.borrow().len(), columns);
            let a = trained(adapter_name(name, 'A'), &a, rank, columns)?;
            let b = trained(adapter_name(name, 'B'), &vec![0.0; rows * rank], rows, rank)?;
            Ok(Adapter { a, b, scale: lora.scale() as f32 })
        };
        let part = |&(name, rows): &(&str, usize)| {
            let adapter = lora.adapts(name).then(|| adapter(name, rows)).transpose()?;
            Ok(LayerPart { rows, adapter })
        };
        parts.iter().map(part).collect()
    }

    pub(super) fn weight_of(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<DeviceWeight, CheckpointError> {
        let values = source.stacked(parts, columns)?;
        let tensor = self.decoder_tensor(parts, &values, columns, Role::Factor)?;
        Ok(DeviceWeight { tensor, adapters: self.adapters(parts, columns)? })
    }

    fn tensor(
        &self,
        values: &[f32],
        columns: usize,
        role: Role,
        is_trained: bool,
    ) -> Result<Arc<DeviceTensor>, CheckpointError> {
        let memory = &self.gpu.ops.memory;
        let count = values.len();
        let rounded = match role {
            Role::Scale => None,
            Role::Factor => {
                let rounded: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
                Some(memory.upload(&rounded)?)
            }
        };
        let is_read = is_trained || role == Role::Scale;
        let values = if is_read { Some(memory.upload(values)?) } else { None };
        let zeros = || -> Result<Buffer<f32>, CheckpointError> {
            let buffer = memory.take(count)?;
            memory.clear(&buffer, count)?;
            Ok(buffer)
        };
        let state = match is_trained {
            true => Some(State { gradient: zeros()?, first: zeros()?, second: zeros()? }),
            false => None,
        };
        Ok(Arc::new(DeviceTensor { rows: count / columns, columns, rounded, values, state }))
    }

    fn register(
        &self,
        parts: &[(&str, usize)],
        shape: Vec<usize>,
        role: Role,
        tensor: &Arc<DeviceTensor>,
    ) {
        self.parameters.borrow_mut().push(DeviceParameter {
            parts: parts.iter().map(|&(name, rows)| (name.to_owned(), rows)).collect(),
            shape,
            decays: role == Role::Factor,
            tensor: tensor.clone(),
        });
    }
}
