//! Training: from preference pairs to a checkpoint that the server loads.

mod accuracy;
mod best_of_n;
mod convert;
mod data;
mod eval;
mod features;
mod fit;
mod init;
mod sample;
mod sweep;

pub use accuracy::{
    BaselineReport, CALIBRATION_FILE, CalibrationBin, LatentDiagnostics, MarginBin, PairAccuracy,
    PairEvaluation, TextScorer, wilson_interval,
};
#[cfg(feature = "judge")]
pub(crate) use accuracy::{NORMAL_QUANTILE, mean_interval};
pub use best_of_n::{
    BestOfN, BestOfNReport, BestOfNRow, Estimate, ProxyReport, ScoredBy, best_of_n_kl,
    expected_best,
};
pub use convert::{
    Distance, ExportSettings, MERGE_FILE, MergeRecord, MergeSettings, MergedInput, export, merge,
};
pub(crate) use data::{ANSWER_FORMS, answer};
pub use data::{
    BadLines, Dropped, EncodedPair, LeftOut, Origin, Pair, PairLimits, Reason, Split, encode_pairs,
    name_left_out, read_pairs,
};
#[cfg(feature = "judge")]
pub(crate) use data::{DataFile, RESPONSE_COLUMNS, Response, data_files, read_rows, responses};
#[cfg(feature = "judge")]
pub(crate) use eval::Scoring;
pub use eval::{
    BaselineSettings, EvaluationSettings, make_baseline, open_with_latents, side_by_side,
};
pub use features::{Compute, Depth, FeatureStore, Inference};
pub use fit::{
    AdamW, Backward, FeatureConfig, FitConfig, FitReport, Gradients, KlReduction, Loss, LossConfig,
    LossMargin, OptimiserConfig, ScheduleConfig, ScheduleKind, TRAINING_FILE, TrainingRecord,
    WeightedFile, active_dimensions, fit, mean_margin, pair_loss,
};
pub use init::init_head;
pub use sample::{SampleRecord, SampleReport, SampleSettings, sample};
pub use sweep::{
    FailedRun, RunSummary, Setting, SettingSummary, Spread, SweepConfig, SweepReport, sweep,
};
