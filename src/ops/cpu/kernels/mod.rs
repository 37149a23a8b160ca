//! The arithmetic of the CPU device, compiled for each instruction set.

pub(in crate::ops::cpu) mod bf16;
pub(in crate::ops::cpu) mod elementwise;
pub(in crate::ops::cpu) mod gradients;
pub(in crate::ops::cpu) mod tile;
