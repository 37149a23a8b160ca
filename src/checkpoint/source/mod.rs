//! Where a checkpoint is read from: a folder, a GGUF file, or either of them in a hub's cache.

mod hub;
mod origin;

pub use origin::CheckpointSource;
