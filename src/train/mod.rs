//! Training: from preference pairs to a checkpoint that the server loads.

mod card;
mod config;
mod data;
mod descent;
mod epoch;
mod evaluate;
mod evaluation;
mod features;
mod fit;
mod init_head;
mod left_out;
mod loss;
mod optimiser;
#[cfg(feature = "parquet")]
mod parquet;
mod plots;
mod progress;
mod rows;
mod schedule;
mod scratch;
mod tensorboard;
mod trained;

pub use config::{FeatureConfig, FitConfig, WeightedFile};
pub use data::{BadLines, EncodedPair, Origin, Pair, PairLimits, Split, encode_pairs, read_pairs};
pub use evaluate::{Judge, PairAccuracy, wilson_interval};
pub use evaluation::{CalibrationBin, Evaluation, MarginBin, side_by_side};
pub use features::FeatureStore;
pub use fit::{FitReport, TRAINING_FILE, TrainingRecord, fit};
pub use init_head::init_head;
pub use left_out::{Dropped, LeftOut, Reason, name_left_out};
pub use loss::{
    KlReduction, Loss, LossConfig, LossMargin, active_dimensions, mean_margin, pair_loss,
};
pub use optimiser::{AdamW, OptimiserConfig};
pub(crate) use rows::lines;
pub use schedule::{ScheduleConfig, ScheduleKind};
