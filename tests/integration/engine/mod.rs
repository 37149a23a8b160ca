//! Batching and the ways to hidden states.

mod batching;
mod encoder;
