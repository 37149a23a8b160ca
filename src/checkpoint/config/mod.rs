//! `config.json`: the backbone's keys as Hugging Face names them, and the reward head's.

mod head;
mod model;
mod standard_head;

pub use head::{DecodeKind, HeadConfig, RewardScale};
pub use model::ModelConfig;
pub use standard_head::{StandardConfig, StandardHead};
