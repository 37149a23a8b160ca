//! The journal: what the monitor knows, kept through a crash.
//!
//! Entries go through a channel to one thread, which commits all that has come since its last commit in
//! one transaction (group commit). So the file always holds a prefix of what was appended. Nobody waits
//! for the disk, unless `flush_ms` is 0: then a request's answer waits for the commit with its samples.
//!
//! While the file cannot be written, entries wait in memory, up to `monitor.max_pending` samples; further
//! samples are lost to the journal and counted, and monitoring goes on.

mod clock;
mod committer;
mod config;
mod entry;
mod error;
mod record;
mod store;

pub(super) use clock::unix_seconds;
pub(super) use committer::{Committed, Journal};
pub use config::JournalConfig;
pub(super) use entry::JournalEntry;
pub use error::JournalError;
pub(super) use record::{BaselineRecord, ObservationRecord, RunRecord, StateRecord};
pub(super) use store::StoredRun;
