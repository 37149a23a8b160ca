//! Training: from preference pairs to a checkpoint that the server loads.

mod adapter;
mod card;
mod config;
mod data;
mod descent;
mod evaluate;
mod evaluation;
mod features;
mod fit;
mod gradients;
mod init_head;
mod loss;
mod optimiser;
mod progress;
mod schedule;
mod scratch;
mod trained;

pub use config::{FeatureConfig, FitConfig};
pub(crate) use data::lines;
pub use data::{
    BadLines, Dropped, EncodedPair, Origin, Pair, PairLimits, Split, encode_pairs, read_pairs,
};
pub use evaluate::{Judge, PairAccuracy, wilson_interval};
pub use evaluation::{CalibrationBin, Evaluation, MarginBin, side_by_side};
pub use features::{Depth, FeatureStore};
pub use fit::{FitReport, TRAINING_FILE, TrainingRecord, fit};
pub use gradients::{Backward, Gradients};
pub use init_head::init_head;
pub use loss::{KlReduction, Loss, LossConfig, LossMargin, pair_loss};
pub use optimiser::{AdamW, OptimiserConfig};
pub use schedule::{ScheduleConfig, ScheduleKind};
