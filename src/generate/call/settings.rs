//! Which model writes.

use std::path::PathBuf;

/// Which model writes, and how it is loaded.
#[derive(Debug, Clone)]
pub struct GeneratorSettings {
    /// A folder, a GGUF file, or owner/name of a hub.
    pub model: PathBuf,
    /// In-situ quantisation: a type of mistral.rs, as `q8_0` or `q4k`.
    pub quantise: Option<String>,
    /// The CPU, even where there is a GPU.
    pub cpu: bool,
}
