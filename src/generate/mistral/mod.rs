//! Text generation by mistral.rs.

mod generator;
mod sampler;

pub use generator::Generator;
