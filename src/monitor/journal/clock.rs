//! The wall clock.

use std::time::{Duration, SystemTime};

/// Seconds since the Unix epoch.
pub(in crate::monitor) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
