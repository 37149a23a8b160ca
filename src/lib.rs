//! InfoRM reward-model server and trainer.
//!
//! Data flows one way: `http -> engine -> model -> ops`, and `engine -> monitor`. Nothing below
//! imports anything above. `docs/architecture.md` has the picture.

pub mod checkpoint;
pub mod model;
pub mod ops;
