//! Language models that write: answers of a policy, and verdicts of a judge. The model runs in mistral.rs, behind the
//! feature `mistralrs`; texts become token ids, and token ids texts, as everywhere here.

#[cfg(not(feature = "mistralrs"))]
mod absent;
#[cfg(feature = "mistralrs")]
mod drawing;
#[cfg(feature = "mistralrs")]
mod mistral;
mod sampling;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[cfg(not(feature = "mistralrs"))]
pub use absent::Generator;
#[cfg(feature = "mistralrs")]
pub use mistral::Generator;
pub use sampling::Sampling;

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

/// Why a text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// There was no room for more tokens.
    Length,
}

/// What a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Without special tokens.
    pub text: String,
    /// Its tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Why it ends.
    pub finish: Finish,
}
