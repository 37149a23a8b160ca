//! The same operations recorded for training, over candle's tensors.
//!
//! Gathers, sums and the loss go through candle's own autograd; products, norms, activations and packed
//! attention are custom operations of the CPU device's kernels, whose backward is here.

mod attention;
mod decoder;
mod device;
mod gated;
mod gelu;
mod head;
mod host;
mod linear_weight;
mod lora;
mod norm;
mod parameters;
mod product;
mod seed;
mod weights;

pub use attention::AutogradLayout;
pub use decoder::AutogradProjection;
pub use device::AutogradOps;
pub use linear_weight::LinearWeight;
pub use lora::{LoraConfig, adapter_name};
pub use norm::NormWeight;
pub use parameters::{Parameter, Trains};
