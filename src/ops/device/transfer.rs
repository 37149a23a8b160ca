//! What a device holds, and how values get there and back.

use std::fmt::Debug;

use super::error::Result;
use crate::checkpoint::{CheckpointError, DecoderConfig};

/// A device: what it computes with, and how values get there and back.
///
/// Activations are row-major matrices `[rows, columns]`, one row a packed token, or one row a sequence once they are
/// pooled. A [`DeviceOps::Matrix`] is f32. A [`DeviceOps::Operand`] is what products read, in the precision that the device
/// multiplies; it is made only to be multiplied. Heads are computed in f32 throughout.
///
/// Contract: a row of a result depends on no other sequence's rows, and its bits do not depend on how
/// many rows there are, or on whether a prefix was packed once or several times. (A GPU that trains keeps that but for the last
/// digits of products.)
pub trait DeviceOps: Debug {
    /// f32 activations `[rows, columns]`.
    type Matrix: Debug;
    /// Activations `[rows, columns]` as products read them.
    type Operand: Debug;
    /// A norm: its kind, its scale `[columns]` and, of a layer norm, its bias.
    type Scale: Debug + Send + Sync;

    /// Whether the device has every operation of a decoder. This is the one gate: models are loaded behind it.
    ///
    /// # Errors
    /// [`CheckpointError::Unsupported`], which names what it lacks.
    fn supports(&self, decoder: &DecoderConfig) -> std::result::Result<(), CheckpointError>;

    /// Runs `work`, which calls other operations, where they begin at once: on a thread of the device's
    /// own, if it has some.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }

    /// Copies a row-major matrix `[values / columns, columns]` to the device.
    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Self::Matrix>;

    /// Copies to host memory, row-major.
    fn read(&self, x: &Self::Matrix) -> Result<Vec<f32>>;
}
