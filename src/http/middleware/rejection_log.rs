//! One line of the log for many refusals: a line each would cost more than the refusals.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// Counts the requests that were refused since the last line.
#[derive(Debug, Default)]
pub(in crate::http) struct RejectionLog {
    count: AtomicU64,
    logged: Mutex<Option<Instant>>,
}

impl RejectionLog {
    /// Counts a refusal; answers how many there were, where it is time to say so.
    pub(in crate::http) fn count(&self) -> Option<u64> {
        self.count.fetch_add(1, Ordering::Relaxed);
        // Whoever finds the lock held is counted by its holder or by the next line.
        let mut logged = self.logged.try_lock()?;
        if logged.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        *logged = Some(Instant::now());
        Some(self.count.swap(0, Ordering::Relaxed))
    }
}
