//! What a decoder is made of, whatever its family.

mod config;
mod family;
mod part;

pub use config::{Architecture, Biases, DecoderConfig, MlpKind, NormKind, Residual, SlidingLayers};
pub use family::Family;
pub use part::DecoderPart;
