//! Choices that several commands offer.

use clap::ValueEnum;
use inform::checkpoint::WeightType;
use inform::train::BadLines;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum StoredAs {
    F32,
    F16,
    Bf16,
}

impl From<StoredAs> for WeightType {
    fn from(stored_as: StoredAs) -> Self {
        match stored_as {
            StoredAs::F32 => Self::F32,
            StoredAs::F16 => Self::F16,
            StoredAs::Bf16 => Self::Bf16,
        }
    }
}

/// What to do with a bad line.
pub(crate) fn bad_lines(drop: bool) -> BadLines {
    if drop { BadLines::Drop } else { BadLines::Refuse }
}
