//! Requests that are not scored.

use std::time::Duration;

use thiserror::Error;

/// A request that the engine did not score at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EngineError {
    /// Too many tokens wait already; try again.
    #[error("{waiting} tokens wait and {asked} more exceed the limit of {limit}; try again")]
    QueueFull {
        /// Tokens in the queue.
        waiting: usize,
        /// Tokens of this request.
        asked: usize,
        /// The queue's limit.
        limit: usize,
        /// Time that the device needs for what waits.
        wait: Duration,
    },
    /// The device cannot come to it within the deadline; try again.
    #[error(
        "what is ahead takes {:.1} s and the deadline is in {:.1} s; try again",
        wait.as_secs_f64(), left.as_secs_f64()
    )]
    Overloaded {
        /// Time that the device needs for what is ahead, and for the request.
        wait: Duration,
        /// Time to the deadline.
        left: Duration,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// The deadline passed.
    #[error("not scored within the deadline")]
    DeadlineExceeded,
}

impl EngineError {
    /// Time after which a refused request has better prospects: when half of what is ahead is done. Then
    /// there is room, and the device has not run dry.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { wait, .. } | Self::Overloaded { wait, .. } => Some(*wait / 2),
            Self::Draining | Self::DeadlineExceeded => None,
        }
    }
}
