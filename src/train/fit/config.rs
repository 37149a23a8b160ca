//! The settings of `trainer fit`, in TOML. Defaults are the paper's where it gives them.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::loss::LossConfig;
use super::optimiser::OptimiserConfig;
use super::schedule::ScheduleConfig;
use crate::checkpoint::{DecodeKind, DecoderConfig, HeadConfig, WeightType};
use crate::config::DeviceChoice;
use crate::ops::autograd::LoraConfig;
use crate::ops::cpu::Precision;
use crate::train::data::{BadLines, PairLimits};
use crate::train::features::{Compute, Depth};

/// Everything that decides a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FitConfig {
    /// Folder to write the checkpoint to; replaced where it exists.
    pub output: PathBuf,
    /// Seed of initial weights, split, order and noise.
    #[serde(default)]
    pub seed: u64,
    /// Type in which the weights are stored.
    #[serde(default)]
    pub weight_type: WeightType,
    /// Threads; 0 for one a processor.
    #[serde(default)]
    pub threads: usize,
    /// Where the decoder is trained, or the features of its frozen part are computed: `cpu`, `cuda` or `cuda:N`.
    #[serde(default = "default_device", skip_serializing_if = "is_cpu")]
    pub device: DeviceChoice,
    /// Precision of the decoder's products while training. Weights, moments and the head are f32.
    #[serde(default)]
    pub dtype: Precision,
    /// What is trained.
    #[serde(default)]
    pub mode: Mode,
    /// How many layers are trained, counted from the last one; of `mode = "last_layers"` only.
    #[serde(default)]
    pub last_layers: usize,
    /// Low-rank adapters; of `mode = "lora"` only.
    #[serde(default)]
    pub lora: LoraConfig,
    /// Whether only what enters each layer is kept for the backward pass, and the rest computed again: less memory for
    /// a third more time.
    #[serde(default)]
    pub recompute: bool,
    /// Features of the frozen part.
    #[serde(default)]
    pub features: FeatureConfig,
    /// What to start from.
    pub start: Start,
    /// The reward head.
    #[serde(default)]
    pub head: HeadSettings,
    /// Preference pairs.
    pub data: DataConfig,
    /// Loss.
    #[serde(default)]
    pub loss: LossConfig,
    /// Optimiser.
    #[serde(default)]
    pub optimiser: OptimiserConfig,
    /// Batches and learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Evaluations on the way.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// What an interrupted run goes on from.
    #[serde(default)]
    pub progress: ProgressConfig,
    /// SFT baseline latents.
    #[serde(default)]
    pub baseline: BaselineConfig,
    /// Words for the model card.
    #[serde(default)]
    pub card: CardConfig,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every parameter.
    #[default]
    Full,
    /// Low-rank adapters beside the decoder's linear layers, and the head.
    Lora,
    /// The last layers, the final norm and the head, over features of the rest that are computed once.
    LastLayers,
    /// The head, over features of the rest that are computed once.
    Head,
}

impl Mode {
    /// Whether there is no frozen part whose features are computed once.
    pub(in crate::train) fn trains_decoder(self) -> bool {
        matches!(self, Self::Full | Self::Lora)
    }
}

/// Features of the frozen part of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeatureConfig {
    /// Folder that keeps them for further runs on the same backbone and pairs; without it they are not
    /// kept.
    pub folder: Option<PathBuf>,
    /// Precision of products of the pass that computes them.
    pub dtype: Precision,
}

/// Where a model starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Start {
    /// A checkpoint folder; its head is kept where it has the one that is asked for.
    Folder(PathBuf),
    /// Random weights, and a byte-level BPE tokenizer trained on the training pairs.
    Scratch(ScratchConfig),
}

/// A new Llama-family decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ScratchConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub max_position_embeddings: usize,
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
}

fn default_rope_theta() -> f64 {
    10_000.0
}

/// Kinds of reward head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// Information bottleneck.
    Inform,
    /// One linear layer.
    Standard,
}

/// The reward head to train.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadSettings {
    /// InfoRM or standard.
    pub kind: HeadKind,
    /// Dimension of the latent.
    pub latent_dim: usize,
    /// From latent to reward.
    pub decode: DecodeKind,
}

impl Default for HeadSettings {
    fn default() -> Self {
        Self { kind: HeadKind::Inform, latent_dim: 128, decode: DecodeKind::Linear }
    }
}

impl HeadSettings {
    /// As the checkpoint writes it.
    pub fn head(&self) -> HeadConfig {
        match self.kind {
            HeadKind::Inform => HeadConfig::inform(self.latent_dim, self.decode),
            HeadKind::Standard => HeadConfig::standard(),
        }
    }
}

/// Greatest weight of a file.
const MAX_WEIGHT: f64 = 100.0;

/// Preference pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// JSONL files, gzipped where the name ends in `.gz`, or Parquet files.
    pub files: Vec<WeightedFile>,
    /// Pairs for training; the rest is held out. Without it, nine in ten.
    pub train_pairs: Option<usize>,
    /// Share of the training pairs, chosen by the seed, whose answers are exchanged: label noise.
    #[serde(default)]
    pub label_noise: f64,
    /// What to do with a line that is no pair.
    #[serde(default)]
    pub bad_lines: BadLines,
    /// Whether a pair that was there already is left out.
    #[serde(default)]
    pub deduplicate: bool,
    /// Longest sequence of a pair, in tokens; a pair with a longer one is dropped and counted.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
}

impl DataConfig {
    /// The files without their weights.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    /// Which pairs are used.
    pub fn limits(&self) -> PairLimits {
        PairLimits { max_tokens: self.max_tokens, deduplicate: self.deduplicate }
    }

    fn check_files(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.files.is_empty(), "data.files: name at least one file");
        let mut names = HashSet::new();
        for WeightedFile { path, weight } in &self.files {
            let name = path.display();
            anyhow::ensure!(
                *weight > 0.0 && *weight <= MAX_WEIGHT,
                "data.files: {name}: a weight must be above 0 and at most {MAX_WEIGHT}"
            );
            anyhow::ensure!(
                names.insert(path),
                "data.files: {name} is named twice; a weight of 2 has its pairs twice in an epoch"
            );
        }
        Ok(())
    }
}

/// A file of pairs: a path, or `{ path, weight }`.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedFile {
    /// The file.
    pub path: PathBuf,
    /// How often an epoch has one of its training pairs, on average.
    pub weight: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathAndWeight {
    path: PathBuf,
    #[serde(default = "default_weight")]
    weight: f64,
}

fn default_weight() -> f64 {
    1.0
}

impl From<PathBuf> for WeightedFile {
    fn from(path: PathBuf) -> Self {
        Self { path, weight: default_weight() }
    }
}

impl Serialize for WeightedFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { path, weight } = self.clone();
        if weight == default_weight() {
            path.serialize(serializer)
        } else {
            PathAndWeight { path, weight }.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for WeightedFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms;

        impl<'de> Visitor<'de> for Forms {
            type Value = WeightedFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a file's path, or { path = \"..\", weight = 0.5 }")
            }

            fn visit_str<E>(self, path: &str) -> Result<WeightedFile, E> {
                Ok(PathBuf::from(path).into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WeightedFile, A::Error> {
                let PathAndWeight { path, weight } =
                    Deserialize::deserialize(MapAccessDeserializer::new(map))?;
                Ok(WeightedFile { path, weight })
            }
        }

        deserializer.deserialize_any(Forms)
    }
}

fn default_device() -> DeviceChoice {
    DeviceChoice::Cpu
}

fn is_cpu(device: &DeviceChoice) -> bool {
    *device == DeviceChoice::Cpu
}

fn default_max_tokens() -> usize {
    2048
}

/// SFT baseline latents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BaselineConfig {
    /// Chosen answers of held-out pairs whose latents are stored; 0 for no baseline.
    pub samples: usize,
}

impl Default for BaselineConfig {
    fn default() -> Self {
        Self { samples: 1024 }
    }
}

/// Evaluations on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Steps from one to the next; 0 for none.
    pub every_steps: usize,
    /// Held-out pairs of each, the first ones.
    pub pairs: usize,
    /// Whether the weights with the highest accuracy are stored, not the last ones.
    pub keep_best: bool,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { every_steps: 0, pairs: 512, keep_best: false }
    }
}

/// What an interrupted run goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProgressConfig {
    /// Steps from one saved state to the next; 0 for none.
    pub every_steps: usize,
}

/// Words for the model card.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CardConfig {
    /// Title.
    pub title: String,
    /// Where the data comes from, under which licence, and what a user should know.
    pub notes: String,
}

impl FitConfig {
    /// Reads and checks a TOML file.
    ///
    /// # Errors
    /// Names the file, and the key or the line.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let config: Self = toml::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        config.check().with_context(|| file.display().to_string())?;
        Ok(config)
    }

    /// Where the frozen part of `decoder` ends.
    ///
    /// # Errors
    /// More last layers than a part of the decoder.
    pub fn depth(&self, decoder: &DecoderConfig) -> anyhow::Result<Depth> {
        if self.mode != Mode::LastLayers {
            return Ok(Depth::Pooled);
        }
        let layers = decoder.num_hidden_layers;
        anyhow::ensure!(
            self.last_layers < layers,
            "last_layers: {} of a decoder of {layers}: train it with `mode = \"full\"`",
            self.last_layers
        );
        Ok(Depth::Entering(layers - self.last_layers))
    }

    /// Where and how a model is computed that is not trained: the frozen part, or what the run gave.
    pub(in crate::train) fn compute(&self) -> Compute {
        let dtype = match self.device {
            _ if !self.mode.trains_decoder() => self.features.dtype,
            DeviceChoice::Cuda(_) => self.dtype,
            DeviceChoice::Auto | DeviceChoice::Cpu => Precision::F32,
        };
        let key = if self.mode.trains_decoder() { "dtype" } else { "features.dtype" };
        Compute::new(self.device.clone(), dtype, self.threads).with_dtype_key(key)
    }

    /// These settings without what may change between an interrupted run and its continuation.
    pub(in crate::train) fn decisive(&self) -> Self {
        Self {
            output: PathBuf::new(),
            threads: 0,
            // Which of several GPUs is another machine's matter.
            device: match &self.device {
                DeviceChoice::Cuda(_) => DeviceChoice::Cuda(Vec::new()),
                device => device.clone(),
            },
            progress: ProgressConfig::default(),
            card: CardConfig::default(),
            ..self.clone()
        }
    }

    pub(in crate::train) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.data.files.is_empty(), "data.files: name at least one file");
        anyhow::ensure!(self.head.latent_dim > 0, "head.latent_dim: must be at least 1");
        anyhow::ensure!(self.data.max_tokens > 1, "data.max_tokens: must be at least 2");
        anyhow::ensure!(
            (0.0..=1.0).contains(&self.data.label_noise),
            "data.label_noise: must be from 0 to 1"
        );
        anyhow::ensure!(
            self.mode == Mode::Full || matches!(self.start, Start::Folder(_)),
            "mode: what is not trained must be there: name it in `start.folder`"
        );
        anyhow::ensure!(
            (self.mode == Mode::LastLayers) == (self.last_layers > 0),
            "last_layers: at least 1 with `mode = \"last_layers\"`, and 0 with others"
        );
        if self.mode == Mode::Lora {
            self.lora.check()?;
        }
        self.compute().check()?;
        anyhow::ensure!(
            !self.evaluation.keep_best || self.evaluation.every_steps > 0,
            "evaluation.keep_best: needs evaluation.every_steps"
        );
        self.data.check_files()?;
        self.loss.check()?;
        self.optimiser.check()?;
        self.schedule.check()
    }
}
