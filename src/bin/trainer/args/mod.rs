//! Flags that several commands share.

mod choices;
mod compute;
mod generation;

pub(crate) use choices::{StoredAs, bad_lines};
pub(crate) use compute::ComputeArgs;
pub(crate) use generation::{FirstSampleArgs, GenerationArgs};
