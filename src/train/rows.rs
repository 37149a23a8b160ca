//! Data files row by row: the lines of JSONL, the rows of Parquet.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// A row's number, from 1, and what stands there; or why it cannot be read. A file that cannot be read further ends
/// with the row that says so.
pub(super) type Row = (usize, anyhow::Result<Value>);

/// The rows of a file; of Parquet, which is stored by column, `columns` only. Empty lines are counted and left out.
///
/// # Errors
/// A file that cannot be opened, whose form this program does not read, or Parquet without any of `columns`.
pub(super) fn rows(file: &Path, columns: &[&str]) -> anyhow::Result<Box<dyn Iterator<Item = Row>>> {
    if is_parquet(file) {
        parquet_rows(file, columns)
    } else {
        Ok(Box::new(json_rows(open(file)?)))
    }
}

/// Whether a file is read as Parquet: its name ends in `.parquet`.
pub(super) fn is_parquet(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "parquet")
}

#[cfg(feature = "parquet")]
fn parquet_rows(file: &Path, columns: &[&str]) -> anyhow::Result<Box<dyn Iterator<Item = Row>>> {
    let rows = super::parquet::ParquetRows::open(file, columns);
    Ok(Box::new(rows.with_context(|| file.display().to_string())?))
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(file: &Path, _: &[&str]) -> anyhow::Result<Box<dyn Iterator<Item = Row>>> {
    anyhow::bail!(
        "{}: this program was built without Parquet; build it with the feature, `cargo build --release --features \
         parquet`, or write the pairs as JSONL",
        file.display()
    )
}

/// The lines of a file, which is unpacked where its name ends in `.gz`.
pub(crate) fn lines(file: &Path) -> anyhow::Result<impl Iterator<Item = std::io::Result<String>>> {
    Ok(open(file)?.lines())
}

fn open(file: &Path) -> anyhow::Result<BufReader<Box<dyn Read>>> {
    let open = File::open(file).with_context(|| file.display().to_string())?;
    let reader: Box<dyn Read> = if file.extension().is_some_and(|extension| extension == "gz") {
        Box::new(MultiGzDecoder::new(open))
    } else {
        Box::new(open)
    };
    Ok(BufReader::new(reader))
}

fn json_rows(mut reader: impl BufRead) -> impl Iterator<Item = Row> {
    let mut number = 0;
    let mut ended = false;
    std::iter::from_fn(move || {
        while !ended {
            number += 1;
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => ended = true,
                Ok(_) if line.trim_ascii().is_empty() => {}
                Ok(_) => return Some((number, json(&line))),
                // A reader that failed once, as at the end of a truncated archive, has no further lines.
                Err(error) => {
                    ended = true;
                    return Some((number, Err(unreadable(error))));
                }
            }
        }
        None
    })
}

fn json(line: &[u8]) -> anyhow::Result<Value> {
    let line = std::str::from_utf8(line).context("not valid UTF-8")?;
    serde_json::from_str(line).context("not valid JSON")
}

/// The error of a row after which there are no others.
pub(super) fn unreadable(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("the file cannot be read further: {error}")
}
