//! Training: from preference pairs to a checkpoint that the server loads.

mod adapter;
mod answers;
mod baseline;
mod baseline_report;
mod best_of_n;
mod card;
mod config;
mod data;
mod data_file;
mod depth;
mod descent;
mod device;
mod diagnostics;
mod epoch;
mod evaluate;
mod evaluation;
mod export;
mod features;
mod figures;
mod fit;
mod gradients;
mod held_out;
mod inference;
mod init_head;
mod left_out;
mod loss;
mod merge;
mod optimiser;
mod origin;
mod parquet;
mod plots;
mod progress;
mod record;
mod responses;
mod row;
mod rows;
mod sample;
mod schedule;
mod scoring;
mod scratch;
mod side_by_side;
mod sweep;
mod tensorboard;
mod trained;

pub(crate) use answers::{ANSWER_FORMS, answer};
pub use baseline::{BaselineSettings, make_baseline, open_with_latents};
pub use baseline_report::{BaselineReport, CALIBRATION_FILE};
pub use best_of_n::{
    BestOfN, BestOfNReport, BestOfNRow, Estimate, ProxyReport, ScoredBy, best_of_n_kl,
    expected_best,
};
pub use config::{FeatureConfig, FitConfig, WeightedFile};
#[cfg(feature = "judge")]
pub(crate) use data::read_rows;
pub use data::{BadLines, EncodedPair, Pair, PairLimits, Split, encode_pairs, read_pairs};
#[cfg(feature = "judge")]
pub(crate) use data_file::{DataFile, data_files};
pub use depth::Depth;
pub use diagnostics::LatentDiagnostics;
#[cfg(feature = "judge")]
pub(crate) use evaluate::{NORMAL_QUANTILE, mean_interval};
pub use evaluate::{PairAccuracy, TextScorer, wilson_interval};
pub use evaluation::{CalibrationBin, Evaluation, MarginBin};
pub use export::{ExportSettings, export};
pub use features::FeatureStore;
pub use fit::fit;
pub use gradients::{Backward, Gradients};
pub use held_out::EvaluationSettings;
pub use inference::{Compute, Inference};
pub use init_head::init_head;
pub use left_out::{Dropped, LeftOut, Reason, name_left_out};
pub use loss::{
    KlReduction, Loss, LossConfig, LossMargin, active_dimensions, mean_margin, pair_loss,
};
pub use merge::{Distance, MERGE_FILE, MergeRecord, MergeSettings, MergedInput, merge};
pub use optimiser::{AdamW, OptimiserConfig};
pub use origin::Origin;
pub use record::{FitReport, TRAINING_FILE, TrainingRecord};
#[cfg(feature = "judge")]
pub(crate) use responses::{RESPONSE_COLUMNS, Response, responses};
pub use sample::{SampleRecord, SampleReport, SampleSettings, sample};
pub use schedule::{ScheduleConfig, ScheduleKind};
#[cfg(feature = "judge")]
pub(crate) use scoring::Scoring;
pub use side_by_side::side_by_side;
pub use sweep::{
    FailedRun, RunSummary, Setting, SettingSummary, Spread, SweepConfig, SweepReport, sweep,
};
