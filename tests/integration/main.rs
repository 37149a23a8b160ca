//! Tests of the library and its two programs, in folders by what they test.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod checkpoint;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
mod http;
mod monitor;
mod numerics;
mod programs;
mod source;
mod trainer;
