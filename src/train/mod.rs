//! Training: from preference pairs to a checkpoint that the server loads.

mod card;
mod config;
mod data;
mod evaluate;
mod evaluation;
mod features;
mod fit;
mod init_head;
mod loss;
mod optimiser;
mod schedule;
mod scratch;
mod trained;

pub use config::FitConfig;
pub(crate) use data::lines;
pub use data::{Dropped, EncodedPair, Pair, Split, encode_pairs, read_pairs};
pub use evaluate::{PairAccuracy, evaluate, wilson_interval};
pub use evaluation::{CalibrationBin, Evaluation, MarginBin, side_by_side};
pub use fit::{FitReport, TRAINING_FILE, TrainingRecord, fit};
pub use init_head::init_head;
pub use loss::{KlReduction, Loss, LossConfig, pair_loss};
pub use optimiser::{AdamW, OptimiserConfig};
pub use schedule::{ScheduleConfig, ScheduleKind};
