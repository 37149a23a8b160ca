//! The decoder's operations on a GPU, recorded for training.
//!
//! The forward pass is the one that scores. Each operation leaves a step for the way back, whose kernels and products
//! add in an order that the batch alone decides: the same step gives the same bits. Products read bf16 and sum in f32; what is
//! trained, its gradients and its moments are f32. Heads are trained on the CPU, from the pooled rows on.

mod attention;
mod backward;
mod decoder;
mod device;
mod gpu;
mod kernels;
mod optimiser;
mod parameters;
mod tape;
mod weights;

pub use attention::TrainingLayout;
pub use decoder::TrainingProjection;
pub use device::CudaTraining;
pub use parameters::{DeviceParameter, DeviceTensor, DeviceWeight};
pub use tape::{SharedValue, Value};
