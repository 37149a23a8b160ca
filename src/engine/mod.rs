//! Dynamic batching: requests from any number of connections become full batches, on a thread for each
//! device.
//!
//! [`Engine::score`] looks into the cache, joins work that is under way, and queues the rest (`queue.rs`,
//! `backlog.rs`). `plan.rs` chooses batches: fair across runs, by deadline within. A full batch is planned
//! while the device works on the one before.

mod backlog;
mod cache;
mod config;
mod device_thread;
mod error;
mod handle;
mod job;
mod plan;
mod queue;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tokeniser;
mod work;

pub use cache::{CacheConfig, ScoreCache};
pub use config::EngineConfig;
pub use error::EngineError;
pub use handle::Engine;
pub use job::{Job, JobError, JobScore};
pub use tokeniser::Tokeniser;
