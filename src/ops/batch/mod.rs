//! What a batch brings to every device: packed tokens, rotations of their positions, noise.

mod noise;
mod packing;
mod rotary;

pub use noise::standard_normal;
pub use packing::{Packing, Segment};
pub(in crate::ops) use rotary::{Rotary, RotaryTables};
