//! The settings of a sweep, in TOML, and the runs that they make.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::checkpoint::DecodeKind;
use crate::train::fit::{FitConfig, HeadKind};

/// Folder in the output that keeps features, where the base names none.
const FEATURES: &str = "features";

/// A base, and what is varied.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepConfig {
    /// Settings that every run has where the grid says nothing.
    pub fit: FitConfig,
    /// Folder of the checkpoints, the table and the plot.
    pub output: PathBuf,
    grid: Grid,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    base: PathBuf,
    output: PathBuf,
    grid: Grid,
}

/// Values of settings under the names that they have in a training's file; each empty list leaves the base's.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Grid {
    seed: Vec<u64>,
    head: HeadGrid,
    loss: LossGrid,
    data: DataGrid,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HeadGrid {
    kind: Vec<HeadKind>,
    latent_dim: Vec<usize>,
    decode: Vec<DecodeKind>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LossGrid {
    beta: Vec<f64>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DataGrid {
    label_noise: Vec<f64>,
}

/// What distinguishes runs besides their seeds. A standard head has neither latent nor bottleneck.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Setting {
    /// InfoRM or standard.
    pub kind: HeadKind,
    /// Dimension of the latent.
    pub latent_dim: Option<usize>,
    /// From latent to reward.
    pub decode: Option<DecodeKind>,
    /// Weight of the bottleneck.
    pub beta: Option<f64>,
    /// Share of the training pairs whose answers are exchanged.
    pub label_noise: f64,
}

/// One training of a sweep.
#[derive(Debug, Clone)]
pub(super) struct GridRun {
    /// Of its folder.
    pub(super) name: String,
    pub(super) setting: Setting,
    pub(super) config: FitConfig,
}

impl SweepConfig {
    /// Reads and checks a TOML file, and the settings that it names as its base.
    ///
    /// # Errors
    /// Names the file, and the key or the line.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let named = || file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(named)?;
        let File { base, output, grid } =
            toml::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", named()))?;
        let fit = FitConfig::read(&base).with_context(|| format!("{}: `base`", named()))?;
        Ok(Self { fit, output, grid })
    }

    /// The runs: every combination, but each of a standard head once, whatever latents and betas there are.
    ///
    /// # Errors
    /// A combination that is no valid training: names the run and the key.
    pub(super) fn runs(&self) -> anyhow::Result<Vec<GridRun>> {
        crate::checkpoint::parent_and_name(&self.output)?;
        let Grid { seed, head, loss, data } = &self.grid;
        let mut configs = vec![self.fit.clone()];
        configs = vary(configs, &data.label_noise, |fit, &noise| fit.data.label_noise = noise);
        configs = vary(configs, &head.kind, |fit, &kind| fit.head.kind = kind);
        configs = vary(configs, &head.latent_dim, |fit, &dim| fit.head.latent_dim = dim);
        configs = vary(configs, &head.decode, |fit, &decode| fit.head.decode = decode);
        configs = vary(configs, &loss.beta, |fit, &beta| fit.loss.beta = beta);
        configs = vary(configs, seed, |fit, &seed| fit.seed = seed);
        let mut runs: Vec<GridRun> = configs.into_iter().map(|config| self.run(config)).collect();
        let mut known = HashSet::new();
        runs.retain(|run| known.insert(run.name.clone()));
        for run in &runs {
            run.config.check().with_context(|| run.name.clone())?;
        }
        Ok(runs)
    }

    fn run(&self, mut config: FitConfig) -> GridRun {
        if config.head.kind == HeadKind::Standard {
            // Whatever the grid has of them: the run stays the same when the grid grows.
            config.head.latent_dim = self.fit.head.latent_dim;
            config.head.decode = self.fit.head.decode;
            config.loss.beta = self.fit.loss.beta;
        }
        let setting = Setting::of(&config);
        let name = format!("{setting}-seed{}", config.seed);
        config.output = self.output.join(&name);
        // One for all: what is frozen is the same in all runs. A training of the whole model has none.
        config.features.folder.get_or_insert_with(|| self.output.join(FEATURES));
        GridRun { name, setting, config }
    }
}

/// Each of the configurations with each of the values; as they are where there is no value.
fn vary<T>(
    configs: Vec<FitConfig>,
    values: &[T],
    set: impl Fn(&mut FitConfig, &T),
) -> Vec<FitConfig> {
    if values.is_empty() {
        return configs;
    }
    let with = |config: &FitConfig, value: &T| {
        let mut config = config.clone();
        set(&mut config, value);
        config
    };
    configs.iter().flat_map(|config| values.iter().map(move |value| with(config, value))).collect()
}

impl Setting {
    fn of(config: &FitConfig) -> Self {
        let kind = config.head.kind;
        let is_inform = kind == HeadKind::Inform;
        Self {
            kind,
            latent_dim: is_inform.then_some(config.head.latent_dim),
            decode: is_inform.then_some(config.head.decode),
            beta: is_inform.then_some(config.loss.beta),
            label_noise: config.data.label_noise,
        }
    }

    /// The head's kind, and its decoding where it is not the usual one.
    pub(super) fn head(&self) -> &'static str {
        match (self.kind, self.decode) {
            (HeadKind::Standard, _) => "standard",
            (HeadKind::Inform, Some(DecodeKind::Gated)) => "inform-gated",
            (HeadKind::Inform, _) => "inform",
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.head())?;
        if let Some(dimension) = self.latent_dim {
            write!(f, "-d{dimension}")?;
        }
        if let Some(beta) = self.beta {
            write!(f, "-beta{beta:?}")?;
        }
        if self.label_noise > 0.0 {
            write!(f, "-noise{}", self.label_noise)?;
        }
        Ok(())
    }
}
