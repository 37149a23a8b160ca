//! What is wrong with a checkpoint, and in which of its files.

use std::path::{Path, PathBuf};

use thiserror::Error;

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
