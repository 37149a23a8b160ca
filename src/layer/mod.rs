//! Shapes and kinds of a decoder's layers, as `config.json` names them and devices compute them.

mod attention_shape;
mod gelu;
mod rope_scaling;

pub use attention_shape::AttentionShape;
pub use gelu::Gelu;
pub use rope_scaling::{RopeFactors, RopeScaling};
