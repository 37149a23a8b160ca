//! What a device does: small traits by purpose, their errors, and what they take.

mod adamw;
mod decoder;
mod error;
mod head;
mod transfer;
mod weights;

pub use adamw::{AdamWStep, StateTensor};
pub use decoder::{DecoderOps, QueryRows, TrainingOps};
pub use error::{OpsError, Result};
pub use head::{HeadOps, InformHead, LatentDecoder, decode_latents, inform_head_in_steps};
pub use transfer::DeviceOps;
pub use weights::WeightOps;

/// Everything that scoring needs of a device: a decoder and a reward head.
pub trait Ops: DecoderOps + HeadOps {}

impl<O: DecoderOps + HeadOps> Ops for O {}
