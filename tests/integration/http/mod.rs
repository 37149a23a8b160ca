//! The routes, as clients see them.

mod bad_input;
mod models;
mod openapi;
#[cfg(feature = "otlp")]
mod otlp;
mod page;
mod protocols;
mod readme;
mod reward;
mod shutdown;
mod stack;
