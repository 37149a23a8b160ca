//! A share of something.

use std::fmt;

use serde::Serialize;

use crate::train::wilson_interval;

/// How many of so many. Displayed as the cells of a table: count, share, and interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// How many.
    pub count: usize,
    /// Their share.
    pub share: f64,
    /// Wilson's 95 % interval of the share.
    pub interval: (f64, f64),
}

impl Share {
    pub(in crate::judge) fn of(count: usize, all: usize) -> Self {
        let share = count as f64 / all.max(1) as f64;
        Self { count, share, interval: wilson_interval(count, all) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, share, interval: (low, high) } = self;
        write!(f, "{count} | {share:.3} | {low:.3} to {high:.3}")
    }
}
