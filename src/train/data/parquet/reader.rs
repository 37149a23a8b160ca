//! Rows of Parquet files as the values that lines of JSONL would have.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use serde_json::{Map, Number, Value};

use crate::train::data::row;
use crate::train::data::row::unreadable;

/// The rows of a file: of `columns` only, since Parquet is stored by column.
///
/// # Errors
/// A file that cannot be opened, or that has none of `columns`.
pub(in crate::train) fn parquet_rows(
    file: &Path,
    columns: &[&str],
) -> anyhow::Result<Box<dyn Iterator<Item = row::Row>>> {
    let rows = ParquetRows::open(file, columns);
    Ok(Box::new(rows.with_context(|| file.display().to_string())?))
}

/// The rows of a file, group by group, of those columns that are asked for.
struct ParquetRows {
    reader: SerializedFileReader<File>,
    columns: SchemaDescPtr,
    /// Row groups that were begun.
    groups: usize,
    /// What is left of the last of them.
    group: Option<ReaderIter>,
    /// Rows that were read.
    number: usize,
    ended: bool,
}

impl ParquetRows {
    /// # Errors
    /// A file that is no Parquet, or has none of the columns.
    fn open(file: &Path, columns: &[&str]) -> anyhow::Result<Self> {
        let file = File::open(file)?;
        let reader = guarded(|| SerializedFileReader::new(file))?;
        let schema = reader.metadata().file_metadata().schema();
        let fields = schema.get_fields().iter().filter(|field| columns.contains(&field.name()));
        let fields: Vec<_> = fields.cloned().collect();
        ensure!(!fields.is_empty(), "no column `{}`", columns.join("` or `"));
        let columns = Type::group_type_builder(schema.name()).with_fields(fields).build()?;
        let columns = Arc::new(SchemaDescriptor::new(Arc::new(columns)));
        Ok(Self { reader, columns, groups: 0, group: None, number: 0, ended: false })
    }

    fn row(&mut self) -> Result<Option<Row>, ParquetError> {
        loop {
            if let Some(row) = self.group.as_mut().and_then(Iterator::next) {
                return row.map(Some);
            }
            if self.groups == self.reader.num_row_groups() {
                return Ok(None);
            }
            let group = self.reader.get_row_group(self.groups)?;
            self.group = Some(TreeBuilder::new().as_iter(self.columns.clone(), &*group)?);
            self.groups += 1;
        }
    }
}

impl Iterator for ParquetRows {
    type Item = row::Row;

    fn next(&mut self) -> Option<row::Row> {
        if self.ended {
            return None;
        }
        self.number += 1;
        let row = guarded(|| self.row());
        self.ended = !matches!(row, Ok(Some(_)));
        match row {
            Ok(None) => None,
            Ok(Some(row)) => Some((self.number, object(&row))),
            Err(error) => Some((self.number, Err(unreadable(format!("{error:#}"))))),
        }
    }
}

/// The library panics at some kinds of damage and at column types that it does not know.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> anyhow::Result<T> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => Ok(read?),
        Err(_) => bail!("damaged, or of a type that is not read"),
    }
}

fn object(row: &Row) -> anyhow::Result<Value> {
    let fields = row.get_column_iter().map(|(name, field)| {
        Ok((name.clone(), value(field).with_context(|| format!("`{name}`"))?))
    });
    Ok(Value::Object(fields.collect::<anyhow::Result<Map<_, _>>>()?))
}

fn value(field: &Field) -> anyhow::Result<Value> {
    let number = |number: f64| {
        let number = Number::from_f64(number).context("expected a finite number")?;
        Ok(Value::Number(number))
    };
    match field {
        Field::Null => Ok(Value::Null),
        Field::Bool(flag) => Ok((*flag).into()),
        Field::Byte(n) => Ok((*n).into()),
        Field::Short(n) => Ok((*n).into()),
        Field::Int(n) => Ok((*n).into()),
        Field::Long(n) => Ok((*n).into()),
        Field::UByte(n) => Ok((*n).into()),
        Field::UShort(n) => Ok((*n).into()),
        Field::UInt(n) => Ok((*n).into()),
        Field::ULong(n) => Ok((*n).into()),
        Field::Float16(n) => number(f64::from(*n)),
        Field::Float(n) => number(f64::from(*n)),
        Field::Double(n) => number(*n),
        Field::Str(text) => Ok(text.as_str().into()),
        // Some writers do not say that their bytes are text.
        Field::Bytes(bytes) => {
            Ok(std::str::from_utf8(bytes.data()).context("not valid UTF-8")?.into())
        }
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => bail!("expected text, a number, a list or a struct"),
    }
}
