//! The commands of `trainer`, a file each.

pub(crate) mod baseline;
pub(crate) mod best_of_n;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fit;
pub(crate) mod init_head;
#[cfg(feature = "judge")]
pub(crate) mod judge;
pub(crate) mod merge;
pub(crate) mod monitor_replay;
pub(crate) mod sample;
pub(crate) mod sweep;
