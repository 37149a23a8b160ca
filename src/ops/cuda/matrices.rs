//! What lies on the device: activations, weights and tables.

use std::sync::Arc;

use half::bf16;

use super::memory::DeviceBuffer;
use crate::ops::batch::Rotary;

/// A row-major matrix `[rows, columns]` on the device, with room for whole pieces of a product.
#[derive(Debug)]
pub struct CudaMatrix<T> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: DeviceBuffer<T>,
}

/// A linear layer's weight `[outputs, columns]`.
#[derive(Debug)]
pub struct CudaWeight {
    pub(super) outputs: usize,
    pub(super) columns: usize,
    pub(super) values: DeviceBuffer<bf16>,
}

/// A head's weight `[outputs, columns]`.
#[derive(Debug)]
pub struct CudaHeadWeight {
    pub(super) outputs: usize,
    pub(super) columns: usize,
    pub(super) values: DeviceBuffer<f32>,
    /// The values rounded to bf16, and what that left; `None` where it left nothing.
    pub(super) high: DeviceBuffer<bf16>,
    pub(super) rest: Option<DeviceBuffer<bf16>>,
}

/// An embedding table.
#[derive(Debug)]
pub struct CudaTable {
    pub(super) columns: usize,
    pub(super) values: DeviceBuffer<bf16>,
}

/// AttentionTables of the rotary embedding on the device.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) host: Arc<Rotary>,
    pub(super) cosine: DeviceBuffer<f32>,
    pub(super) sine: DeviceBuffer<f32>,
}

/// Queries, keys and values after their rotary embedding: `[q | k | v]`, or `[k | v]`.
#[derive(Debug)]
pub struct CudaProjection {
    pub(super) values: CudaMatrix<bf16>,
    /// Columns before the keys.
    pub(super) query_columns: usize,
}
