//! Tests that take long: kills at random moments, failing disks and clocks, a 135M model, load from many clients.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod hh;
mod journal;
mod resume;
mod smollm2;
