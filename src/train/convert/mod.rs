//! Checkpoints from checkpoints.

mod export;
mod merge;

pub use export::{ExportSettings, export};
pub use merge::{Distance, MERGE_FILE, MergeRecord, MergeSettings, MergedInput, merge};
