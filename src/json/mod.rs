//! Stricter readings of JSON than serde derives.

pub(crate) mod integer;
pub(crate) mod object;
