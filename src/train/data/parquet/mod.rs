//! Parquet files, where the program was built to read them.

#[cfg(not(feature = "parquet"))]
mod absent;
#[cfg(feature = "parquet")]
mod reader;

#[cfg(not(feature = "parquet"))]
pub(in crate::train) use absent::parquet_rows;
#[cfg(feature = "parquet")]
pub(in crate::train) use reader::parquet_rows;
