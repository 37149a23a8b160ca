//! The kernels of a bf16 device.

#[cfg(not(target_arch = "x86_64"))]
mod absent;
mod panel;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(not(target_arch = "x86_64"))]
pub(in crate::ops::cpu) use absent::{multiply, multiply_gated, round, softmax_block};
pub(in crate::ops::cpu) use panel::PairPanel;
#[cfg(target_arch = "x86_64")]
pub(in crate::ops::cpu) use x86_64::{multiply, multiply_gated, round, softmax_block};
