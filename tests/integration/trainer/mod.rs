//! What the commands of `trainer` make.

mod bad_data;
mod baseline;
mod best_of_n;
mod family_training;
mod fit;
#[cfg(feature = "judge")]
mod judge;
#[cfg(all(feature = "judge", feature = "mistralrs"))]
mod local_judge;
#[cfg(feature = "parquet")]
mod parquet;
mod sample;
mod sweep;
