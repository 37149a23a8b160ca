//! The CUDA device: the kernels of `kernels/` and cuBLAS's products, all on one stream.
//!
//! Weights and what products read are bf16, sums and the residual stream f32, the head f32 throughout. The bits of a row
//! depend on its own sequence only: in the kernels by construction, in the products as `products.rs` says.
//! `docs/gpu.md` has what each step should cost.

mod decoder;
mod device;
mod error;
mod head;
mod kernels;
mod launch;
mod layout;
mod matrices;
mod memory;
mod products;
pub mod training;
mod weights;

pub use device::CudaOps;
pub use error::CudaError;
pub use layout::CudaLayout;
pub use matrices::{CudaHeadWeight, CudaMatrix, CudaProjection, CudaTable, CudaWeight};
pub use memory::DeviceBuffer;
