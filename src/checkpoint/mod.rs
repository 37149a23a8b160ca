//! What lies on disk: a Hugging Face style folder with an InfoRM or standard reward head.
//!
//! | file | content |
//! |---|---|
//! | `config.json` | the backbone's keys as Hugging Face names them, and the head's: [`ModelConfig`] |
//! | `model.safetensors`, or shards with `model.safetensors.index.json` | `model.*` and the head |
//! | `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` | [`TextEncoder`] |
//! | `baseline.safetensors` | SFT baseline latents, optional: [`Baseline`] |
//!
//! Or a GGUF file, which is read as such a folder ([`Gguf`]); or one of both that a hub has
//! ([`CheckpointSource::open`]).

mod baseline;
mod config;
mod date;
mod decoder;
mod families;
mod gguf;
mod hash;
mod hub;
mod padding;
mod source;
mod standard;
mod template;
mod tensors;
mod text;
mod write;

use std::path::{Path, PathBuf};

use thiserror::Error;

pub use baseline::{BASELINE_FILE, Baseline};
pub use config::{CONFIG_FILE, DecodeKind, HeadConfig, ModelConfig, RewardScale};
pub use decoder::{
    Architecture, Biases, DecoderConfig, MlpKind, NormKind, Part, Residual, SlidingLayers,
};
pub(crate) use families::Place;
pub use families::{DecoderTensors, Family};
pub use gguf::Gguf;
pub(crate) use hash::combined_hash;
pub(crate) use padding::{TOKEN_FILES, padding_token};
pub use source::CheckpointSource;
pub use standard::{StandardConfig, StandardHead};
pub use tensors::{FolderTensors, MemoryTensors, TensorSource, TensorValues};
pub use text::{
    BosPolicy, EncodeError, Encoding, EosPolicy, Input, Message, Pooling, SpecialToken,
    TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, TextEncoder, TextPolicy,
};
pub use write::{
    CheckpointFiles, CheckpointParts, TensorLayout, WeightType, write_checkpoint,
    write_checkpoint_parts,
};
pub(crate) use write::{check_output, place, replace_file};

/// A checkpoint that cannot be read or written. Each message names the file, what was found, and
/// what was expected.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CheckpointError {
    #[error("{}: {source}", file.display())]
    Io { file: PathBuf, source: std::io::Error },
    #[error("{}: not valid JSON: {source}", file.display())]
    Json { file: PathBuf, source: serde_json::Error },
    #[error("{}: `{key}`: {message}", file.display())]
    Config { file: PathBuf, key: String, message: String },
    #[error(
        "{}: `architectures`: found {found}, this build serves {expected}",
        file.display()
    )]
    UnknownArchitecture { file: PathBuf, found: String, expected: String },
    #[error(
        "{}: not a whole safetensors file ({message}); it may be truncated: copy it again",
        file.display()
    )]
    Damaged { file: PathBuf, message: String },
    #[error("{model}: no such folder or file, and as a hub's model: {message}")]
    Hub { model: String, message: String },
    #[error("{}: not a GGUF file that can be read: {message}", file.display())]
    DamagedGguf { file: PathBuf, message: String },
    #[error("{}: no tensor `{tensor}`, expected one of shape {expected:?}", file.display())]
    MissingTensor { file: PathBuf, tensor: String, expected: Vec<usize> },
    #[error(
        "{}: no tensor `{}`, expected the reward head's of shape {expected:?}; a language model gets a \
         fresh head by `trainer init-head --model MODEL --output FOLDER`",
        file.display(), tensors.join("`, `")
    )]
    MissingHead { file: PathBuf, tensors: Vec<String>, expected: Vec<usize> },
    #[error(
        "{}: tensor `{tensor}` has shape {found:?}, the configuration makes it {expected:?}",
        file.display()
    )]
    WrongShape { file: PathBuf, tensor: String, found: Vec<usize>, expected: Vec<usize> },
    #[error(
        "{}: tensor `{tensor}` has type {found}, this build reads {expected}",
        file.display()
    )]
    WrongType { file: PathBuf, tensor: String, found: String, expected: String },
    #[error("{}: tensor `{tensor}` has values that are not finite numbers", file.display())]
    NotFinite { file: PathBuf, tensor: String },
    #[error(
        "{}: tensor `{tensor}` has values that are not finite, or that {weight_type} cannot hold",
        folder.display()
    )]
    NotStored { folder: PathBuf, tensor: String, weight_type: &'static str },
    #[error("{}: {message}", file.display())]
    Tokenizer { file: PathBuf, message: String },
    #[error("{}: the chat template cannot be used: {message}", file.display())]
    Template { file: PathBuf, message: String },
    #[error(
        "{}: the baseline was made with weights {found}, these are {expected}; make it again with \
         these weights",
        file.display()
    )]
    ForeignBaseline { file: PathBuf, found: String, expected: String },
    #[error("a tensor could not be built: {source}")]
    Tensor { source: Box<candle_core::Error> },
    #[error("the weights could not be brought to the device: {message}")]
    Device { message: String },
    #[error("{0}")]
    Unsupported(String),
}

impl CheckpointError {
    /// Wraps an I/O error with the file it happened on.
    pub fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { file, source }
    }
}

/// Reads a JSON file of the checkpoint.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, CheckpointError> {
    let text = std::fs::read(file).map_err(CheckpointError::io(file))?;
    serde_json::from_slice(&text)
        .map_err(|source| CheckpointError::Json { file: file.to_owned(), source })
}

/// An opened checkpoint. Weights stay memory-mapped until a device packs them.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder, or the GGUF file.
    pub folder: PathBuf,
    /// What it is called, see [`CheckpointSource::name`].
    pub name: String,
    /// Backbone and head.
    pub config: ModelConfig,
    /// The weights.
    pub tensors: FolderTensors,
    /// Chat template and tokenizer.
    pub encoder: TextEncoder,
    /// SFT latents, where the folder has them.
    pub baseline: Option<Baseline>,
    /// `sha256:` and 64 hexadecimal digits over everything that decides a reward from token ids:
    /// the configuration's numbers, and every tensor's name, type, shape and bytes.
    pub weights: String,
}

impl Checkpoint {
    /// Opens a folder, a GGUF file or a hub's model and checks all of it but the tensors' shapes, which are checked when a
    /// model is built from it.
    ///
    /// # Errors
    /// A missing or damaged file, an unknown architecture, a configuration that contradicts itself,
    /// or a baseline made with other weights.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let checkpoint = Self::open_without_baseline(path)?;
        let latent_dim = checkpoint.config.head.latent_dim();
        let baseline = Baseline::read(&checkpoint.folder, &checkpoint.weights, latent_dim)?;
        Ok(Self { baseline, ..checkpoint })
    }

    /// As [`Checkpoint::open`], but whatever baseline the folder has is not looked at: it is to be replaced.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_without_baseline(path: &Path) -> Result<Self, CheckpointError> {
        let source = CheckpointSource::open(path)?;
        let (name, folder) = (source.name().to_owned(), source.path().to_owned());
        let config = ModelConfig::of(&source)?;
        let encoder = TextEncoder::read(&source, &config.decoder)?;
        let tensors = source.into_tensors()?;
        let weights = hash::weights_hash(&config, &tensors);
        Ok(Self { folder, name, config, tensors, encoder, baseline: None, weights })
    }

    /// A hash over the backbone alone: its configuration, and its tensors' names, types, shapes and bytes.
    pub fn backbone(&self) -> String {
        let decoder = &self.config.decoder;
        hash::backbone_hash(decoder, &self.tensors, decoder.architecture.family.prefix())
    }
}
