//! The journal's file: a redb database.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `"format"` | number of the format |
//! | `runs` | run | [`RunRecord`] |
//! | `states` | run | [`StateRecord`] |
//! | `seen` | run | samples of it that came, whether they are kept or not |
//! | `observations` | run, number of the first sample in its run | [`ObservationRecord`] |
//! | `recorded` | the same, of `role = "baseline"` | [`ObservationRecord`] |
//! | `evaluations` | run, number | the evaluation, in JSON |
//! | `baselines` | run | [`BaselineRecord`], the one in use |
//! | `ages` | order of arrival | table, key, bytes and time of an observation or evaluation |
//!
//! A run has a number that is never used again, so that a run of the same name after a deletion is
//! another one.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;

use super::entry::{JournalEntry, PendingEntry};
use super::error::JournalError;
use super::record::{BaselineRecord, ObservationRecord, RunRecord, StateRecord};
use crate::monitor::answers::Role;
use crate::monitor::verdict::Evaluation;

/// Number of the format of tables and records.
const FORMAT: u64 = 1;
/// Memory for pages of the file.
const CACHE: usize = 32 << 20;
/// Rows that one pruning transaction takes away at most.
const PRUNED_AT_ONCE: usize = 10_000;
/// The file doubles when it is full. So that it never exceeds its limit, its pages in use take no more
/// than this share of the limit.
const USED_SHARE: f64 = 0.45;
/// The share that pruning leaves in use.
const KEPT_SHARE: f64 = 0.4;
/// Pages in use are counted anew when this share of the limit was written.
const COUNTED_SHARE: u64 = 32;

type RunRowTable = TableDefinition<'static, (u64, u64), &'static [u8]>;
type RunTable = TableDefinition<'static, u64, &'static [u8]>;

const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const RUNS: RunTable = TableDefinition::new("runs");
const STATES: RunTable = TableDefinition::new("states");
const SEEN: TableDefinition<'static, u64, u64> = TableDefinition::new("seen");
const OBSERVATIONS: RunRowTable = TableDefinition::new("observations");
const RECORDED: RunRowTable = TableDefinition::new("recorded");
const EVALUATIONS: RunRowTable = TableDefinition::new("evaluations");
const BASELINES: RunTable = TableDefinition::new("baselines");
/// Table (0 observations, 1 evaluations), run, second key, bytes, seconds since the Unix epoch.
const AGES: TableDefinition<'static, u64, AgeRow> = TableDefinition::new("ages");

/// What is kept of one run.
#[derive(Debug)]
pub(in crate::monitor) struct StoredRun {
    pub(in crate::monitor) id: u64,
    pub(in crate::monitor) record: RunRecord,
    pub(in crate::monitor) state: Option<StateRecord>,
    pub(in crate::monitor) baseline: Option<BaselineRecord>,
    /// Every recorded answer.
    pub(in crate::monitor) recorded: Vec<ObservationRecord>,
    pub(in crate::monitor) evaluations: Vec<Evaluation>,
    /// Samples of the last evaluated window, and those that no evaluation has seen, with the number of
    /// the first of each.
    pub(in crate::monitor) samples_from_window: Vec<(u64, ObservationRecord)>,
    /// Samples seen in all.
    pub(in crate::monitor) samples: u64,
    /// When something of it came last, in seconds since the Unix epoch; 0 where that is not known.
    pub(in crate::monitor) last_seen: f64,
}

/// How much the file keeps; 0 for everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retention {
    pub(super) max_bytes: u64,
    pub(super) max_age_s: u64,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// `None` after an error: redb asks to be opened anew.
    database: Option<Database>,
    /// Bytes written since pages were last counted.
    uncounted: u64,
}

impl Store {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        let error = |message: String| JournalError { path: path.to_owned(), message };
        let is_new = !path.exists();
        let database = guarded(|| builder().create(path)).map_err(|e| error(explain(&e)))?;
        let mut store = Self { path: path.to_owned(), database: Some(database), uncounted: 0 };
        // So that the first look at the size counts.
        store.uncounted = u64::MAX / 2;
        let format = guarded(|| store.create_tables()).map_err(|e| error(explain(&e)))?;
        if format != FORMAT {
            let message = format!(
                "its format is {format}, this version reads {FORMAT}; \
                 name another file in monitor.journal.path, or move this one away"
            );
            return Err(error(message));
        }
        if is_new {
            // The file's name must survive a crash too.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let _ = File::open(folder.unwrap_or(Path::new("."))).and_then(|f| f.sync_all());
        }
        Ok(store)
    }

    fn create_tables(&self) -> Result<u64, redb::Error> {
        let transaction = self.database()?.begin_write()?;
        let format = {
            let mut meta = transaction.open_table(META)?;
            let format = meta.get("format")?.map(|format| format.value());
            if format.is_none() {
                meta.insert("format", FORMAT)?;
            }
            format.unwrap_or(FORMAT)
        };
        if format == FORMAT {
            for table in [RUNS, STATES, BASELINES] {
                transaction.open_table(table)?;
            }
            for table in [OBSERVATIONS, RECORDED, EVALUATIONS] {
                transaction.open_table(table)?;
            }
            transaction.open_table(SEEN)?;
            transaction.open_table(AGES)?;
        }
        transaction.commit()?;
        Ok(format)
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::PreviousIo)
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }

    /// Takes away at the start what is not to be kept.
    pub(super) fn prune_at_start(
        &mut self,
        retention: Retention,
        now: u64,
    ) -> Result<(), JournalError> {
        let path = self.path.clone();
        self.prune(retention, now).map_err(|error| JournalError { path, message: explain(&error) })
    }

    /// The runs of these weights; the first number that no run has; the first free place in the order of
    /// arrival.
    pub(super) fn load(&self, weights: &str) -> Result<(Vec<StoredRun>, u64, u64), JournalError> {
        guarded(|| self.read(weights))
            .map_err(|error| JournalError { path: self.path.clone(), message: explain(&error) })
    }

    fn read(&self, weights: &str) -> Result<(Vec<StoredRun>, u64, u64), redb::Error> {
        let transaction = self.database()?.begin_read()?;
        let runs = transaction.open_table(RUNS)?;
        let states = transaction.open_table(STATES)?;
        let baselines = transaction.open_table(BASELINES)?;
        let seen = transaction.open_table(SEEN)?;
        let observations = transaction.open_table(OBSERVATIONS)?;
        let recorded = transaction.open_table(RECORDED)?;
        let evaluations = transaction.open_table(EVALUATIONS)?;
        let ages = transaction.open_table(AGES)?;
        let next = |last: Option<u64>| last.map_or(0, |last| last + 1);
        let next_order = next(ages.last()?.map(|(order, _)| order.value()));
        let mut next_run = transaction.open_table(META)?.get("next_run")?.map_or(0, |n| n.value());
        let mut found = Vec::new();
        for row in runs.iter()? {
            let (id, record) = row?;
            let id = id.value();
            next_run = next_run.max(id + 1);
            let record: RunRecord = json(record.value(), "run")?;
            if record.weights != weights {
                continue;
            }
            let state: Option<StateRecord> =
                states.get(id)?.map(|state| json(state.value(), "state")).transpose()?;
            let baseline =
                baselines.get(id)?.map(|b| compact(b.value(), "baseline")).transpose()?;
            let (window, consumed) =
                state.as_ref().map_or((0, 0), |state| (state.window, state.consumed));
            let mut run = StoredRun {
                id,
                record,
                state,
                baseline,
                recorded: Vec::new(),
                evaluations: Vec::new(),
                samples_from_window: Vec::new(),
                samples: seen.get(id)?.map_or(consumed, |seen| seen.value()),
                last_seen: 0.0,
            };
            for row in recorded.range(of_run(id))? {
                run.recorded.push(compact(row?.1.value(), "recorded answer")?);
            }
            for row in evaluations.range(of_run(id))? {
                run.evaluations.push(json(row?.1.value(), "evaluation")?);
            }
            // A window may end within a request's samples.
            let from = observations.range((id, 0)..=(id, window))?.next_back().transpose()?;
            let from = from.map_or(window, |(key, _)| key.value().1);
            for row in observations.range((id, from)..=(id, u64::MAX))? {
                let (key, value) = row?;
                let mut first = key.value().1;
                let mut record: ObservationRecord = compact(value.value(), "observation")?;
                run.last_seen = run.last_seen.max(record.at);
                let before = window.saturating_sub(first).min(record.len() as u64);
                record.skip(before as usize);
                first += before;
                if record.len() > 0 {
                    run.samples_from_window.push((first, record));
                }
            }
            if let Some(last) = run.evaluations.last() {
                run.last_seen = run.last_seen.max(last.finished_at);
            }
            found.push(run);
        }
        Ok((found, next_run, next_order))
    }

    /// Opens the file anew after an error.
    pub(super) fn reopen(&mut self) -> Result<(), redb::Error> {
        if self.database.is_none() {
            // Not `create`: an empty file in the place of one that somebody took away knows no run.
            self.database = Some(guarded(|| builder().open(&self.path))?);
        }
        Ok(())
    }

    /// Writes entries, all or none. After an error the file is closed; see [`Store::reopen`].
    pub(super) fn commit(&mut self, entries: &[PendingEntry], at: u64) -> Result<(), redb::Error> {
        let result = guarded(|| self.write(entries, at));
        self.close_after(result).map(|bytes| self.uncounted = self.uncounted.saturating_add(bytes))
    }

    fn write(&self, entries: &[PendingEntry], at: u64) -> Result<u64, redb::Error> {
        let transaction = self.database()?.begin_write()?;
        let mut written = 0;
        {
            let mut tables = JournalTables::open(&transaction)?;
            for PendingEntry { order, entry } in entries {
                written += tables.apply(*order, entry, at)?;
            }
        }
        transaction.commit()?;
        Ok(written)
    }

    /// Takes away what is too old or too much, the oldest first.
    pub(super) fn prune(&mut self, retention: Retention, now: u64) -> Result<(), redb::Error> {
        let result = guarded(|| self.prune_by_age(retention.max_age_s, now));
        self.close_after(result)?;
        if retention.max_bytes > 0 && self.uncounted >= retention.max_bytes / COUNTED_SHARE {
            let result = guarded(|| self.prune_by_size(retention.max_bytes));
            self.close_after(result)?;
            self.uncounted = 0;
            if self.bytes() > retention.max_bytes {
                let database = self.database.as_mut().ok_or(redb::Error::PreviousIo)?;
                let result = guarded(|| database.compact());
                self.close_after(result)?;
            }
        }
        Ok(())
    }

    fn prune_by_age(&self, max_age_s: u64, now: u64) -> Result<(), redb::Error> {
        if max_age_s == 0 {
            return Ok(());
        }
        let too_old = |at: u64| at.saturating_add(max_age_s) < now;
        loop {
            let ages = self.database()?.begin_read()?.open_table(AGES)?;
            if !oldest(&ages)?.is_some_and(|(_, age)| too_old(age.at)) {
                return Ok(());
            }
            let mut left = PRUNED_AT_ONCE;
            self.take_away(|_, at| {
                left = left.saturating_sub(1);
                left > 0 && too_old(at)
            })?;
        }
    }

    fn prune_by_size(&self, max_bytes: u64) -> Result<(), redb::Error> {
        loop {
            let transaction = self.database()?.begin_write()?;
            let stats = transaction.stats()?;
            transaction.abort()?;
            let used = stats.allocated_pages() * stats.page_size() as u64;
            let limit = (max_bytes as f64 * USED_SHARE) as u64;
            if used <= limit {
                return Ok(());
            }
            let mut excess = used.saturating_sub((max_bytes as f64 * KEPT_SHARE) as u64);
            let mut left = PRUNED_AT_ONCE;
            let taken = self.take_away(|bytes, _| {
                let more = excess > 0 && left > 0;
                excess = excess.saturating_sub(bytes);
                left = left.saturating_sub(1);
                more
            })?;
            if taken == 0 {
                // What is left are baselines and configurations, which stay.
                return Ok(());
            }
        }
    }

    /// Deletes from the oldest on while `more(bytes, at)` says so; answers how many rows went.
    fn take_away(&self, mut more: impl FnMut(u64, u64) -> bool) -> Result<usize, redb::Error> {
        let transaction = self.database()?.begin_write()?;
        let mut taken = 0;
        {
            let mut ages = transaction.open_table(AGES)?;
            let mut observations = transaction.open_table(OBSERVATIONS)?;
            let mut evaluations = transaction.open_table(EVALUATIONS)?;
            while let Some((order, age)) = oldest(&ages)? {
                if !more(age.bytes, age.at) {
                    break;
                }
                ages.remove(order)?;
                let from = if age.table == 0 { &mut observations } else { &mut evaluations };
                from.remove((age.run, age.key))?;
                taken += 1;
            }
        }
        transaction.commit()?;
        // Pages of the last transaction are free after one more.
        self.database()?.begin_write()?.commit()?;
        Ok(taken)
    }

    fn close_after<T>(&mut self, result: Result<T, redb::Error>) -> Result<T, redb::Error> {
        if result.is_err() {
            let database = self.database.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
        }
        result
    }
}

/// The tables of one transaction.
struct JournalTables<'a> {
    meta: Table<'a, &'static str, u64>,
    runs: Table<'a, u64, &'static [u8]>,
    states: Table<'a, u64, &'static [u8]>,
    baselines: Table<'a, u64, &'static [u8]>,
    seen: Table<'a, u64, u64>,
    observations: Table<'a, (u64, u64), &'static [u8]>,
    recorded: Table<'a, (u64, u64), &'static [u8]>,
    evaluations: Table<'a, (u64, u64), &'static [u8]>,
    ages: Table<'a, u64, AgeRow>,
}

impl<'a> JournalTables<'a> {
    fn open(transaction: &'a WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            runs: transaction.open_table(RUNS)?,
            states: transaction.open_table(STATES)?,
            baselines: transaction.open_table(BASELINES)?,
            seen: transaction.open_table(SEEN)?,
            observations: transaction.open_table(OBSERVATIONS)?,
            recorded: transaction.open_table(RECORDED)?,
            evaluations: transaction.open_table(EVALUATIONS)?,
            ages: transaction.open_table(AGES)?,
        })
    }

    /// Applies one entry. The same entry may come again, when it is not known what became of it.
    fn apply(&mut self, order: u64, entry: &JournalEntry, at: u64) -> Result<u64, redb::Error> {
        let bytes = match entry {
            JournalEntry::Run { run, record } => {
                self.meta.insert("next_run", run + 1)?;
                self.runs.insert(run, record.as_slice())?;
                record.len()
            }
            JournalEntry::Observed { bytes, .. } if bytes.is_empty() => 0,
            JournalEntry::Observed { run, role: Role::Baseline, first, bytes, .. } => {
                self.recorded.insert((*run, *first), bytes.as_slice())?;
                bytes.len()
            }
            JournalEntry::Observed { run, first, bytes, count, .. } => {
                self.seen.insert(run, first + *count as u64)?;
                self.observations.insert((*run, *first), bytes.as_slice())?;
                self.ages.insert(order, (0, *run, *first, bytes.len() as u64, at))?;
                bytes.len()
            }
            JournalEntry::Evaluated { run, number, row, state, keep } => {
                self.evaluations.insert((*run, *number), row.as_slice())?;
                self.states.insert(run, state.as_slice())?;
                self.ages.insert(order, (1, *run, *number, row.len() as u64, at))?;
                if let Some(last) = number.checked_sub(*keep) {
                    self.evaluations.remove((*run, last))?;
                }
                row.len()
            }
            JournalEntry::Baseline { run, bytes, forget_recorded } => {
                self.baselines.insert(run, bytes.as_slice())?;
                if *forget_recorded {
                    self.recorded.retain_in(of_run(*run), |_, _| false)?;
                }
                bytes.len()
            }
            JournalEntry::Removed { run } => {
                self.runs.remove(run)?;
                self.states.remove(run)?;
                self.baselines.remove(run)?;
                self.seen.remove(run)?;
                for table in [&mut self.observations, &mut self.recorded, &mut self.evaluations] {
                    table.retain_in(of_run(*run), |_, _| false)?;
                }
                0
            }
        };
        Ok(bytes as u64)
    }
}

/// A row of `ages`.
struct Age {
    table: u8,
    run: u64,
    key: u64,
    bytes: u64,
    at: u64,
}

type AgeRow = (u8, u64, u64, u64, u64);

/// What came first of all that is kept, with its place in the order.
fn oldest(ages: &impl ReadableTable<u64, AgeRow>) -> Result<Option<(u64, Age)>, redb::Error> {
    let first = ages.first()?;
    Ok(first.map(|(order, row)| {
        let (table, run, key, bytes, at) = row.value();
        (order.value(), Age { table, run, key, bytes, at })
    }))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

/// All keys of a run.
fn of_run(run: u64) -> std::ops::RangeInclusive<(u64, u64)> {
    (run, 0)..=(run, u64::MAX)
}

/// A fault of the library on a damaged file or a failing disk must not end the thread.
fn guarded<T, E: Into<redb::Error>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, redb::Error> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(redb::Error::Corrupted("the file's structure makes no sense".to_owned())),
    }
}

fn json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| redb::Error::Corrupted(format!("{what}: {error}")))
}

fn compact<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, redb::Error> {
    postcard::from_bytes(bytes).map_err(|error| redb::Error::Corrupted(format!("{what}: {error}")))
}

/// What is wrong with the file, and what to do.
fn explain(error: &redb::Error) -> String {
    match error {
        redb::Error::DatabaseAlreadyOpen => "another server has it open; give each server a \
             journal of its own (monitor.journal.path)"
            .to_owned(),
        redb::Error::Io(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            error.to_string()
        }
        error => format!(
            "it is damaged, or no journal ({error}); move it away to begin a new one, or put a copy \
             back in its place"
        ),
    }
}
