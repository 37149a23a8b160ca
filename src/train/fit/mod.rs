//! A training: its settings, its loop, and what it leaves.

mod adapter;
pub(super) mod card;
mod config;
mod device;
mod device_decoder;
mod epoch;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
#[path = "gpu_absent.rs"]
mod gpu;
mod gradients;
mod loss;
mod optimiser;
mod plots;
mod progress;
mod random_init;
mod record;
mod run;
mod schedule;
mod tensorboard;
mod trainable;
mod training_loop;

pub(super) use config::HeadKind;
pub use config::{FeatureConfig, FitConfig, WeightedFile};
pub use gradients::{Backward, Gradients};
pub use loss::{
    KlReduction, Loss, LossConfig, LossMargin, active_dimensions, mean_margin, pair_loss,
};
pub use optimiser::{AdamW, OptimiserConfig};
pub(super) use record::CARD_FILE;
pub use record::{FitReport, TRAINING_FILE, TrainingRecord};
pub use run::fit;
pub use schedule::{ScheduleConfig, ScheduleKind};
