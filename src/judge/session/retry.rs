//! Asking again: what may be answered at another time, or by another draw.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use sha2::{Digest, Sha256};

use super::backend::AskError;
use super::backend::Judge;
use super::failure::Unjudged;
use super::parse::Verdict;
use super::parse::verdict;
use super::question::Question;

/// The most that the second attempt waits; each later one may wait twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The most that an attempt waits by itself.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The most that an attempt waits because a server says so.
const LONGEST_AFTER: Duration = Duration::from_secs(600);

/// How a judge is asked.
#[derive(Debug, Clone, Copy)]
pub struct AskPolicy {
    /// Questions under way at a time, at least 1.
    pub concurrency: usize,
    /// Attempts for each question, at least 1.
    pub attempts: u32,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QuestionOutcome<T> {
    pub(super) verdict: Result<T, Unjudged>,
    pub(super) attempts: u32,
}

/// Why a question was given up before its end.
pub(super) enum Interruption {
    /// Nobody would be answered.
    Fatal(String),
    /// Another question was told so.
    Stopped,
}

/// A flag that ends waiting.
#[derive(Default)]
pub(super) struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(super) fn set(&self) {
        *self.is_set.lock() = true;
        self.changed.notify_all();
    }

    pub(super) fn is_set(&self) -> bool {
        *self.is_set.lock()
    }

    /// Waits, unless and until the flag is set.
    fn wait(&self, time: Duration) {
        self.changed.wait_while_for(&mut self.is_set.lock(), |is_set| !*is_set, time);
    }
}

/// Asks until there is a verdict, an answer that no repetition changes, or no attempt left.
///
/// Each attempt has a seed of its own: an answer that could not be read would otherwise be given again, since the
/// temperature is 0.
pub(super) fn ask<T: Verdict>(
    judge: &dyn Judge,
    question: &Question,
    key: &str,
    policy: AskPolicy,
    stop: &Stop,
) -> Result<QuestionOutcome<T>, Interruption> {
    let mut attempts = 0;
    loop {
        if stop.is_set() {
            return Err(Interruption::Stopped);
        }
        let seed = u64::from(attempts);
        attempts += 1;
        let read = |text: String| verdict(&text).map_err(AskError::Again);
        let (unjudged, time) = match judge.ask(question, seed).and_then(read) {
            Ok(verdict) => return Ok(QuestionOutcome { verdict: Ok(verdict), attempts }),
            Err(AskError::Never(unjudged)) => {
                return Ok(QuestionOutcome { verdict: Err(unjudged), attempts });
            }
            Err(AskError::Fatal(message)) => return Err(Interruption::Fatal(message)),
            Err(AskError::Again(unjudged)) => (unjudged, Duration::ZERO),
            Err(AskError::Later { unjudged, after }) => (unjudged, wait(key, attempts, after)),
        };
        if attempts >= policy.attempts {
            return Ok(QuestionOutcome { verdict: Err(unjudged), attempts });
        }
        stop.wait(time);
    }
}

/// The time to the next attempt: exponential backoff with full jitter, which here follows from the question, on top of
/// what the server asks for.
fn wait(key: &str, attempts: u32, after: Option<Duration>) -> Duration {
    let most = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(attempts - 1)).min(LONGEST_WAIT);
    let digest: [u8; 32] = Sha256::digest(format!("{key} {attempts}")).into();
    let share = f64::from(u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]))
        / f64::from(u32::MAX);
    after.unwrap_or_default().min(LONGEST_AFTER) + most.mul_f64(share)
}
