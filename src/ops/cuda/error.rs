//! What a GPU, or the lack of one, can answer.

use cudarc::cublas::result::CublasError;
use cudarc::driver::DriverError;

use crate::checkpoint::CheckpointError;
use crate::ops::device::OpsError;

/// A GPU that cannot be had, or that refused an operation.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// A library of NVIDIA's is not installed.
    #[error("{0} is not installed")]
    MissingLibrary(&'static str),
    /// The driver has no device, or not this one.
    #[error("there is no GPU {ordinal}: the driver knows {count}")]
    NoSuchDevice {
        /// The device that was asked for, from 0.
        ordinal: usize,
        /// Devices that there are.
        count: usize,
    },
    /// A device that is too old for the kernels.
    #[error("{name} has compute capability {major}.{minor}, the kernels need 8.0 or later")]
    TooOld {
        /// The device's name.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// A model whose attention the kernels do not compute.
    #[error("{0}")]
    Unsupported(String),
    /// The device's memory is full.
    #[error("the GPU has no {bytes} bytes left: {}", answer_text(*answer))]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// The driver's answer.
        answer: DriverError,
    },
    /// The driver failed.
    #[error("{what}: {}", answer_text(*answer))]
    Driver {
        /// What it was asked for.
        what: &'static str,
        /// Its answer.
        answer: DriverError,
    },
    /// cuBLAS failed.
    #[error("cuBLAS: {0:?}")]
    Cublas(CublasError),
}

impl CudaError {
    /// For `map_err`.
    pub(super) fn driver(what: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |answer| Self::Driver { what, answer }
    }
}

impl From<CublasError> for CudaError {
    fn from(error: CublasError) -> Self {
        Self::Cublas(error)
    }
}

impl From<CudaError> for OpsError {
    fn from(error: CudaError) -> Self {
        Self::Device(Box::new(error))
    }
}

impl From<CudaError> for CheckpointError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::Unsupported(message) => Self::Unsupported(message),
            error => Self::Device { message: error.to_string() },
        }
    }
}

/// Name and meaning of a driver's answer. A driver that is none (a stub for linking) may not even have those.
fn answer_text(error: DriverError) -> String {
    let text = |result: Result<&std::ffi::CStr, DriverError>| {
        result.ok().map(|text| text.to_string_lossy().into_owned())
    };
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(meaning)) => format!("{meaning} ({name})"),
        _ => format!("error {}", error.0 as u32),
    }
}
