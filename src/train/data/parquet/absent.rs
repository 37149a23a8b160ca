//! What stands for Parquet in a program without it.

use std::path::Path;

use crate::train::data::row::Row;

/// Never reads.
///
/// # Errors
/// Says how to build a program that does.
pub(in crate::train) fn parquet_rows(
    file: &Path,
    _: &[&str],
) -> anyhow::Result<Box<dyn Iterator<Item = Row>>> {
    anyhow::bail!(
        "{}: this program was built without Parquet; build it with the feature, `cargo build --release --features \
         parquet`, or write the pairs as JSONL",
        file.display()
    )
}
