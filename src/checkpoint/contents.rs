//! An opened checkpoint.

use std::path::{Path, PathBuf};

use super::baseline::Baseline;
use super::config::ModelConfig;
use super::files::CheckpointError;
use super::source::CheckpointSource;
use super::tensors::FolderTensors;
use super::text::TextEncoder;
use super::weights_hash::{backbone_hash, weights_hash};

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
        let weights = weights_hash(&config, &tensors);
        Ok(Self { folder, name, config, tensors, encoder, baseline: None, weights })
    }

    /// A hash over the backbone alone: its configuration, and its tensors' names, types, shapes and bytes.
    pub fn backbone(&self) -> String {
        let decoder = &self.config.decoder;
        backbone_hash(decoder, &self.tensors, decoder.architecture.family.prefix())
    }
}
