//! The encoder in a program with mistral.rs.

mod model;
mod view;

pub use model::load;
