//! How a decoder's weights come to a device.

use std::fmt::Debug;

use super::transfer::DeviceOps;
use crate::checkpoint::{CheckpointError, TensorSource};

/// Loads a decoder's weights.
pub trait WeightOps: DeviceOps {
    /// A linear layer's weight `[out, in]` in the device's own layout.
    type Weight: Debug + Send + Sync;
    /// The gate and up projections of a gated MLP, `[inner, in]` each.
    type GatedWeight: Debug + Send + Sync;
    /// An embedding table `[vocabulary, columns]`.
    type Table: Debug + Send + Sync;

    /// Loads the named tensors, each `[rows, columns]`, stacked by rows into one weight, so that
    /// projections with the same input are one product.
    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Self::Weight, CheckpointError>;

    /// As [`WeightOps::weight`], with a bias `[rows]` for each part, which products with the weight add.
    fn biased_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        biases: &[&str],
        columns: usize,
    ) -> std::result::Result<Self::Weight, CheckpointError>;

    /// Loads the gate and up projections, each `[rows, columns]`.
    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Self::GatedWeight, CheckpointError>;

    /// Loads the scale `[columns]` of a root-mean-square norm.
    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Self::Scale, CheckpointError>;

    /// Loads scale and bias of a layer norm, `[columns]` each.
    fn layer_scale(
        &self,
        source: &dyn TensorSource,
        scale: &str,
        bias: &str,
        columns: usize,
    ) -> std::result::Result<Self::Scale, CheckpointError>;

    /// Loads an embedding table `[rows, columns]`.
    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Self::Table, CheckpointError>;
}
