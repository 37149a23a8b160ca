//! Batching and the ways to hidden states.

mod encoder;
mod engine;
