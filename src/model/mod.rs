//! Reward models: a decoder family and a reward head, written once over [`Ops`](crate::ops::Ops).

mod decoder;
mod ensemble;
mod fresh_weights;
mod head;
mod readout;
mod reward_model;
mod score;
mod scorer;
mod variance;

pub use crate::ops::standard_normal;
pub use decoder::Decoder;
pub use ensemble::{Aggregate, Aggregation, Ensemble, MemberSource};
pub use fresh_weights::{initialise_decoder, initialise_head};
pub use head::{Head, HeadOutput};
pub use reward_model::RewardModel;
pub use score::{Latent, Member, Parts, Score};
pub use scorer::{ScoreError, Scorer};
pub use variance::variance;
