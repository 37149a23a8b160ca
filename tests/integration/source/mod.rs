//! The source tree itself.

mod imports;
mod layers;
