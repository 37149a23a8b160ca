//! Models on GPUs, where the build and the machine have some.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod cuda;

#[cfg(not(feature = "cuda"))]
pub(crate) use absent::NO_GPU;
#[cfg(not(feature = "cuda"))]
pub(super) use absent::{load, serving};
#[cfg(feature = "cuda")]
pub(super) use cuda::{load, serving};
