//! Settings of the monitor and of its runs, and what it refuses.

mod config;
mod error;

pub use config::{MonitorConfig, RunConfig, StatisticsConfig};
pub use error::{MonitorError, OverrideError};
