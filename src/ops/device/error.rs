//! Operations that fail.

use thiserror::Error;

/// A device operation that could not be carried out.
#[derive(Debug, Error)]
pub enum OpsError {
    /// The tensor library refused the operation.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The device or its libraries refused the operation; `CudaError` of a GPU.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
    /// The device has not got the operation: [`DeviceOps::supports`](super::transfer::DeviceOps::supports) should have refused
    /// the model.
    #[error("this device does not compute {0}")]
    Missing(&'static str),
}

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, OpsError>;
