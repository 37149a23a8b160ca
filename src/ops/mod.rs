//! What a device does: the operations that every model family is written in.
//!
//! [`Ops`] is the only thing that `model/` knows of a device: [`DeviceOps`] has what it holds, [`WeightOps`] loads weights,
//! [`DecoderOps`] computes layers, and [`HeadOps`] reward heads. [`cpu`] scores on the CPU, `cuda` (with the
//! feature of that name) on a GPU; [`autograd`] records the same operations for training.

pub mod autograd;
mod batch;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;

pub use batch::{Packing, Segment, standard_normal};
pub use device::{
    AdamWStep, DecoderOps, DeviceOps, HeadOps, InformHead, LatentDecoder, Ops, OpsError, QueryRows,
    Result, StateTensor, TrainingOps, WeightOps, decode_latents, inform_head_in_steps,
};
