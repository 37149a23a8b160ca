//! Weights on a device in training: what is trained in f32 with its gradient and moments, what products read in bf16.

use std::sync::Arc;

use half::bf16;

use crate::ops::cuda::matrices::CudaMatrix;
use crate::ops::cuda::memory::DeviceBuffer;
use crate::ops::cuda::products::Block;

/// A tensor on the device. Trained, it takes 18 bytes an element, else 2 or 4.
#[derive(Debug)]
pub struct DeviceTensor {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// What products read; absent for a norm's scale.
    pub(super) rounded: Option<DeviceBuffer<bf16>>,
    /// The values in f32; absent where they are frozen and products read them.
    pub(super) values: Option<DeviceBuffer<f32>>,
    /// Present where it is trained.
    pub(super) state: Option<GradientMoments>,
}

/// What training keeps of a tensor besides its values: its gradient and its moments.
#[derive(Debug)]
pub(super) struct GradientMoments {
    pub(super) gradient: DeviceBuffer<f32>,
    pub(super) first: DeviceBuffer<f32>,
    pub(super) second: DeviceBuffer<f32>,
}

impl DeviceTensor {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.rows * self.columns
    }

    /// As a product reads it.
    pub(super) fn block(&self) -> Block {
        let address = self.rounded.as_ref().map_or(0, DeviceBuffer::address);
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
    pub(super) adapter: Option<DeviceAdapter>,
}

/// `A` `[rank, in]` and `B` `[rows, rank]` (LoRA).
#[derive(Debug, Clone)]
pub(super) struct DeviceAdapter {
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
pub(super) enum TensorRole {
    /// A factor of products, or a table of embeddings.
    Factor,
    /// A norm's scale: no weight decay.
    Scale,
}

/// What the adapters of a product kept: of each, its input of `B`, `[rows, rank]`.
pub(super) type AdapterInputs = Vec<Option<CudaMatrix<bf16>>>;
