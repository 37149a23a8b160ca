//! Text files line by line, unpacked where they are packed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Context;
use flate2::read::MultiGzDecoder;

/// The lines of a file, which is unpacked where its name ends in `.gz`.
pub(crate) fn lines(file: &Path) -> anyhow::Result<impl Iterator<Item = std::io::Result<String>>> {
    Ok(open(file)?.lines())
}

/// A reader of the bytes of a file, unpacked where its name ends in `.gz`.
pub(crate) fn open(file: &Path) -> anyhow::Result<BufReader<Box<dyn Read>>> {
    let open = File::open(file).with_context(|| file.display().to_string())?;
    let reader: Box<dyn Read> = if file.extension().is_some_and(|extension| extension == "gz") {
        Box::new(MultiGzDecoder::new(open))
    } else {
        Box::new(open)
    };
    Ok(BufReader::new(reader))
}
