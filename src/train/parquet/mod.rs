//! Parquet files, where the program was built to read them.

#[cfg(not(feature = "parquet"))]
mod absent;
#[cfg(feature = "parquet")]
mod reader;

#[cfg(not(feature = "parquet"))]
pub(super) use absent::parquet_rows;
#[cfg(feature = "parquet")]
pub(super) use reader::parquet_rows;
