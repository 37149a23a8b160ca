//! Data files row by row: the lines of JSONL, the rows of Parquet.

use std::io::BufRead;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use super::parquet::parquet_rows;
use crate::lines::open;
use crate::train::data::row::{Row, unreadable};

/// The rows of a file; of Parquet, which is stored by column, `columns` only. Empty lines are counted and left out.
///
/// # Errors
/// A file that cannot be opened, whose form this program does not read, or Parquet without any of `columns`.
pub(in crate::train) fn rows(
    file: &Path,
    columns: &[&str],
) -> anyhow::Result<Box<dyn Iterator<Item = Row>>> {
    if is_parquet(file) {
        parquet_rows(file, columns)
    } else {
        Ok(Box::new(json_rows(open(file)?)))
    }
}

/// Whether a file is read as Parquet: its name ends in `.parquet`.
pub(in crate::train) fn is_parquet(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "parquet")
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
