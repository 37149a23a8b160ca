//! What is appended to the journal.

use serde::Serialize;

use super::record::{BaselineRecord, ObservationRecord, RunRecord, StateRecord};
use crate::monitor::answers::Role;

/// Something to keep. What has several parts is kept as a whole or not at all.
#[derive(Debug)]
pub(in crate::monitor) enum JournalEntry {
    /// A new run, or its new configuration: a [`RunRecord`].
    Run { run: u64, record: Vec<u8> },
    /// Samples; `first` is the number of the first one in its run and role, `count` how many were
    /// expected. Without bytes there is nothing to keep.
    Observed { run: u64, role: Role, first: u64, count: usize, bytes: Vec<u8> },
    /// An evaluation, with the [`StateRecord`] after it. Older ones than the last `keep` go.
    Evaluated { run: u64, number: u64, row: Vec<u8>, state: Vec<u8>, keep: u64 },
    /// The baseline in use: a [`BaselineRecord`].
    Baseline { run: u64, bytes: Vec<u8>, forget_recorded: bool },
    /// A run is forgotten.
    Removed { run: u64 },
}

impl JournalEntry {
    pub(in crate::monitor) fn run(run: u64, record: &RunRecord) -> Self {
        Self::Run { run, record: json(record) }
    }

    /// Of `count` samples that were expected; the record may hold fewer.
    pub(in crate::monitor) fn observed(
        run: u64,
        role: Role,
        first: u64,
        count: usize,
        record: &ObservationRecord,
    ) -> Self {
        let bytes = if record.len() > 0 { compact(record) } else { Vec::new() };
        Self::Observed { run, role, first, count, bytes }
    }

    pub(in crate::monitor) fn evaluated(
        run: u64,
        number: u64,
        row: &impl Serialize,
        state: &StateRecord,
        keep: usize,
    ) -> Self {
        Self::Evaluated { run, number, row: json(row), state: json(state), keep: keep as u64 }
    }

    pub(in crate::monitor) fn baseline(
        run: u64,
        record: &BaselineRecord,
        forget_recorded: bool,
    ) -> Self {
        Self::Baseline { run, bytes: compact(record), forget_recorded }
    }

    pub(super) fn samples(&self) -> usize {
        if let Self::Observed { count, .. } = self { *count } else { 0 }
    }
}

// Numbers, texts and lists of them: both formats hold them all.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn compact(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap_or_default()
}

/// An entry that is not committed yet, at its place in the order of arrival.
#[derive(Debug)]
pub(super) struct PendingEntry {
    pub(super) order: u64,
    pub(super) entry: JournalEntry,
}
