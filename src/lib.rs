//! InfoRM reward-model server and trainer.
//!
//! Scoring without the server:
//!
//! ```
//! use inform::checkpoint::{Checkpoint, Input, Message};
//! use inform::model::{RewardModel, Scorer};
//! use inform::ops::cpu::{CpuOps, Precision};
//!
//! let checkpoint = Checkpoint::open("configs/demo".as_ref())?;
//! let device = CpuOps::new(0, Precision::F32)?;
//! let model = RewardModel::load(device, &checkpoint.config, &checkpoint.tensors)?;
//! let conversation = vec![Message::new("user", "Hello"), Message::new("assistant", "Hi!")];
//! let encoding = checkpoint.encoder.encode(&Input::Messages(conversation), false)?;
//! let scores = model.score(&[&encoding.ids])?;
//! assert!(scores[0].reward.is_finite());
//! assert_eq!(scores[0].latent.as_ref().map(|latent| latent.mean.len()), Some(32));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Data flows one way: `http -> engine -> model -> ops`, and `engine -> monitor`. Nothing below
//! imports anything above. `docs/architecture.md` has the picture.

pub mod allocator;
pub mod checkpoint;
pub mod config;
pub mod encoder;
pub mod engine;
pub mod generate;
pub mod http;
mod input;
mod isa;
mod json;
#[cfg(feature = "judge")]
pub mod judge;
pub mod layer;
mod lines;
pub mod metrics;
pub mod model;
pub mod model_loader;
pub mod monitor;
pub mod ops;
pub mod placement;
pub mod plots;
mod pointer;
pub mod replay;
pub mod server;
pub mod telemetry;
pub mod train;
pub mod verify;
