//! The CPU device.
//!
//! Every output row is computed by a chain of operations that its own sequence fixes: no sum's
//! order depends on the number of rows, threads or neighbours, so rewards are bitwise the same in
//! any batch.

mod attention;
mod buffers;
mod decoder;
mod device;
mod head;
mod kernels;
mod layout;
mod linear;
mod matrix;
mod norm;
mod operand;
mod product;
mod projection;
mod shared_pointer;
mod threads;
mod weights;

pub use crate::isa::Isa;
pub use device::{CpuError, CpuOps};
pub(in crate::ops) use kernels::elementwise::{
    add, geglu, gelu, layer_norm, rms_norm, rotate, soft_cap, swiglu,
};
pub(in crate::ops) use kernels::gradients::{
    geglu_gradient, gelu_gradient, layer_norm_gradient, rms_norm_gradient, soft_cap_gradient,
    softmax_gradient, swiglu_gradient,
};
pub use layout::AttentionLayout;
pub use linear::{PackedGate, PackedWeight};
pub use matrix::Matrix;
pub use norm::Norm;
pub use operand::{Operand, Precision};
pub(in crate::ops) use product::{Factor, product};
pub use projection::AttentionProjection;
pub use weights::Table;
