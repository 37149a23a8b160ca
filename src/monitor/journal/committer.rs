//! The thread that writes, and the handle by which entries reach it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::clock::unix_seconds;
use super::config::JournalConfig;
use super::entry::{JournalEntry, PendingEntry};
use super::error::JournalError;
use super::store::{Retention, Store, StoredRun};
use crate::metrics::Metrics;
use crate::telemetry::spawn;

/// Time between two attempts to write after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Longest time without a look at the age of entries.
const TICK: Duration = Duration::from_secs(60);
/// Longest wait for a commit that somebody asked for.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// Who waits for a commit. Dropped unanswered where the journal fails.
pub(in crate::monitor) type Committed = oneshot::Sender<()>;

enum JournalMessage {
    Entry(JournalEntry, Option<Committed>),
    Flush(Sender<()>),
    Stop,
}

/// Handle to the journal's thread. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::monitor) struct Journal {
    messages: Sender<JournalMessage>,
    shared: Arc<JournalHealth>,
    durable: bool,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

#[derive(Debug)]
struct JournalHealth {
    max_pending: usize,
    failed: AtomicBool,
    losing: AtomicBool,
    metrics: Metrics,
}

impl JournalHealth {
    fn lose(&self, samples: usize) {
        self.metrics.journal_lost.inc_by(samples as u64);
        if !self.losing.swap(true, Ordering::Relaxed) {
            tracing::error!("the journal is too far behind: samples are monitored and not kept");
        }
    }
}

/// An opened journal: its handle, its runs, and the first number that is free for a new one.
pub(in crate::monitor) type Opened = (Journal, Vec<StoredRun>, u64);

impl Journal {
    /// Opens the file, reads the runs whose latents are of `weights`, and starts the thread.
    ///
    /// # Errors
    /// A file that is damaged, of another format, in use by another server, or not writable.
    pub(in crate::monitor) fn open(
        config: &JournalConfig,
        weights: &str,
        max_pending: usize,
        metrics: Metrics,
    ) -> Result<Opened, JournalError> {
        let mut store = Store::open(&config.path)?;
        let retention = Retention { max_bytes: config.max_bytes, max_age_s: config.max_age_s };
        store.prune_at_start(retention, unix_seconds() as u64)?;
        let (runs, next_run, next_order) = store.load(weights)?;
        metrics.journal_bytes.set(store.bytes() as i64);
        let shared = Arc::new(JournalHealth {
            max_pending,
            failed: AtomicBool::new(false),
            losing: AtomicBool::new(false),
            metrics,
        });
        let (messages, inbox) = channel();
        let committer = Committer {
            store,
            shared: shared.clone(),
            flush: Duration::from_millis(config.flush_ms),
            retention,
            next_order,
            pending: Vec::new(),
            waiting: Vec::new(),
            flushers: Vec::new(),
            last_attempt: None,
        };
        let failed = |error: std::io::Error| JournalError {
            path: config.path.clone(),
            message: format!("its thread could not start: {error}"),
        };
        let thread = spawn("journal", move || committer.run(&inbox)).map_err(failed)?;
        let journal = Self {
            messages,
            shared,
            durable: config.flush_ms == 0,
            thread: Arc::new(Mutex::new(Some(thread))),
        };
        Ok((journal, runs, next_run))
    }

    /// Whether answers wait until their samples are committed.
    pub(in crate::monitor) fn is_durable(&self) -> bool {
        self.durable
    }

    /// So many samples are on their way.
    pub(in crate::monitor) fn expect(&self, samples: usize) {
        self.shared.metrics.journal_pending.add(samples as i64);
    }

    /// Adds an entry, whose samples were expected; never waits.
    pub(in crate::monitor) fn append(&self, entry: JournalEntry, committed: Option<Committed>) {
        let samples = entry.samples();
        let shared = &self.shared;
        // Requests that wait for their commits are few enough.
        let bounded = !self.durable || shared.failed.load(Ordering::Relaxed);
        let pending = shared.metrics.journal_pending.get();
        if samples > 0 && bounded && pending > shared.max_pending as i64 {
            shared.metrics.journal_pending.sub(samples as i64);
            return shared.lose(samples);
        }
        // Fails only after `close`.
        let _ = self.messages.send(JournalMessage::Entry(entry, committed));
    }

    /// Waits until everything that was appended before is committed, or cannot be.
    pub(in crate::monitor) fn flush(&self) {
        let (done, inbox) = channel();
        let _ = self.messages.send(JournalMessage::Flush(done));
        // An error is a journal that fails, which the metrics say.
        let _ = inbox.recv_timeout(FLUSH_PATIENCE);
    }

    /// Commits what was appended, and ends the thread.
    pub(in crate::monitor) fn close(&self) {
        let _ = self.messages.send(JournalMessage::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// The journal's thread.
struct Committer {
    store: Store,
    shared: Arc<JournalHealth>,
    flush: Duration,
    retention: Retention,
    next_order: u64,
    pending: Vec<PendingEntry>,
    waiting: Vec<Committed>,
    flushers: Vec<Sender<()>>,
    /// Of the last attempt that failed.
    last_attempt: Option<Instant>,
}

impl Committer {
    fn run(mut self, inbox: &Receiver<JournalMessage>) {
        loop {
            let mut stop = match inbox.recv_timeout(self.tick()) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            let deadline = Instant::now() + self.flush;
            while !stop && self.flushers.is_empty() && !self.pending.is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                match inbox.recv_timeout(left) {
                    Ok(message) => stop = self.take(message),
                    Err(_) => break,
                }
            }
            while let (false, Ok(message)) = (stop, inbox.try_recv()) {
                stop = self.take(message);
            }
            self.commit(stop);
            if stop {
                return;
            }
        }
    }

    /// Time without messages until there is something to do.
    fn tick(&self) -> Duration {
        if self.last_attempt.is_some() {
            return RETRY;
        }
        let age = Duration::from_secs(self.retention.max_age_s.max(1));
        if self.retention.max_age_s > 0 { TICK.min(age) } else { TICK }
    }

    /// Answers whether the journal is to end.
    fn take(&mut self, message: JournalMessage) -> bool {
        match message {
            JournalMessage::Entry(entry, committed) => {
                self.pending.push(PendingEntry { order: self.next_order, entry });
                self.next_order += 1;
                self.waiting.extend(committed);
            }
            JournalMessage::Flush(done) => self.flushers.push(done),
            JournalMessage::Stop => return true,
        }
        false
    }

    fn commit(&mut self, now: bool) {
        let early = self.last_attempt.is_some_and(|last| last.elapsed() < RETRY);
        if !early || now {
            match self.attempt() {
                Ok(()) => self.succeeded(),
                Err(error) => self.failed(&error),
            }
        }
        // After a failure nobody waits any longer: scoring goes on.
        self.waiting.clear();
        self.flushers.clear();
    }

    fn attempt(&mut self) -> Result<(), redb::Error> {
        self.store.reopen()?;
        let now = unix_seconds() as u64;
        if !self.pending.is_empty() {
            self.store.commit(&self.pending, now)?;
            let samples: usize = self.pending.drain(..).map(|p| p.entry.samples()).sum();
            self.shared.metrics.journal_pending.sub(samples as i64);
            for committed in self.waiting.drain(..) {
                // The request may have been given up.
                let _ = committed.send(());
            }
            for done in self.flushers.drain(..) {
                let _ = done.send(());
            }
        }
        self.store.prune(self.retention, now)
    }

    fn succeeded(&mut self) {
        let metrics = &self.shared.metrics;
        metrics.journal_bytes.set(self.store.bytes() as i64);
        self.shared.losing.store(false, Ordering::Relaxed);
        if self.last_attempt.take().is_some() {
            self.shared.failed.store(false, Ordering::Relaxed);
            metrics.journal_failed.set(0);
            let lost = metrics.journal_lost.get();
            tracing::warn!(lost, "the journal is written again");
        }
    }

    fn failed(&mut self, error: &redb::Error) {
        if self.last_attempt.replace(Instant::now()).is_none() {
            self.shared.failed.store(true, Ordering::Relaxed);
            self.shared.metrics.journal_failed.set(1);
            tracing::error!(
                %error,
                "the journal cannot be written: scoring and monitoring go on, a restart would forget"
            );
        }
    }
}
