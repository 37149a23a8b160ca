//! What a generator is given, and what it gives.

mod sampling;
mod settings;
mod text;

pub use sampling::Sampling;
pub use settings::GeneratorSettings;
pub use text::{Finish, Generated};
