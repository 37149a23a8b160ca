//! The routes of this server's own API.

pub(super) mod baseline;
pub(super) mod operations;
pub(super) mod plots;
pub(super) mod reward;
pub(super) mod runs;

pub(super) use plots::{nothing_yet, tagged};
