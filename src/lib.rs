//! InfoRM reward-model server and trainer.
//!
//! Data flows one way: `http -> engine -> model -> ops`, and `engine -> monitor`. Nothing below
//! imports anything above. `docs/architecture.md` has the picture.

pub mod checkpoint;
pub mod config;
pub mod engine;
pub mod http;
pub mod metrics;
pub mod model;
pub mod monitor;
pub mod ops;
pub mod server;
pub mod telemetry;
pub mod train;
