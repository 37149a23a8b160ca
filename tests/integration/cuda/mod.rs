//! The CUDA device, real or emulated.

mod scoring;
mod training;
