//! What the monitor refuses.

use thiserror::Error;

use crate::monitor::journal::JournalError;

/// A monitor that cannot be started or asked.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// A setting is out of range.
    #[error("monitor.{setting}: {message}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The operating system refused the thread.
    #[error("the monitor's thread could not start: {0}")]
    Thread(#[from] std::io::Error),
    /// There is no such run.
    #[error("there is no run `{0}`; runs appear with their first scored answer")]
    UnknownRun(String),
    /// There is nothing to evaluate.
    #[error("the open window of run `{0}` is empty")]
    EmptyWindow(String),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A run cannot have these settings of its own.
    #[error("{}: {}", .0.pointer, .0.message)]
    Override(OverrideError),
    /// A baseline that nothing can be compared with.
    #[error("a baseline needs at least one latent")]
    EmptyBaseline,
}

/// Own settings that a run cannot have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverrideError {
    /// JSON pointer of the setting at fault.
    pub pointer: String,
    /// What is wrong with it.
    pub message: String,
    /// Whether it is right by itself, and out of place beside other settings or out of range.
    pub is_conflict: bool,
}
