//! All settings, and where they are read from.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};

use super::device::{CudaConfig, DeviceChoice, DtypeChoice};
use super::encoder::{EncoderChoice, EncoderConfig};
use super::limits::{AuthConfig, Limits};
use super::model::{EnsembleConfig, LATENTS, NamedModel, ObjectivesConfig};
use super::verify::VerifyConfig;
use crate::engine::{CacheConfig, EngineConfig};
use crate::monitor::MonitorConfig;
use crate::telemetry::LogConfig;

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Checkpoint folder, GGUF file, or `owner/name` of a model hub.
    pub model: PathBuf,
    /// A head with several labels.
    pub objectives: ObjectivesConfig,
    /// Several checkpoints that give one reward.
    pub ensemble: EnsembleConfig,
    /// Further models, which requests name.
    pub models: Vec<NamedModel>,
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Device to score on.
    pub device: DeviceChoice,
    /// Precision of products.
    pub dtype: DtypeChoice,
    /// Threads of the CPU device; 0 for one a processor.
    pub threads: usize,
    /// GPUs.
    pub cuda: CudaConfig,
    /// What computes hidden states.
    pub encoder: EncoderChoice,
    /// mistral.rs as the encoder.
    pub mistralrs: EncoderConfig,
    /// Time that accepted requests have to finish at a shutdown, in milliseconds.
    pub shutdown_grace_ms: u64,
    /// What a request may ask.
    pub limits: Limits,
    /// Who may ask.
    pub auth: AuthConfig,
    /// Batching.
    pub engine: EngineConfig,
    /// Scores that were computed before.
    pub cache: CacheConfig,
    /// Detection of over-optimisation.
    pub monitor: MonitorConfig,
    /// Rewards to check at the start.
    pub verify: VerifyConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            model: PathBuf::from("configs/demo"),
            objectives: ObjectivesConfig::default(),
            ensemble: EnsembleConfig::default(),
            models: Vec::new(),
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            device: DeviceChoice::Auto,
            dtype: DtypeChoice::Auto,
            threads: 0,
            cuda: CudaConfig::default(),
            encoder: EncoderChoice::default(),
            mistralrs: EncoderConfig::default(),
            shutdown_grace_ms: 60_000,
            limits: Limits::default(),
            auth: AuthConfig::default(),
            engine: EngineConfig::default(),
            cache: CacheConfig::default(),
            monitor: MonitorConfig::default(),
            verify: VerifyConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// Prefix of the environment's settings. Nested keys are joined by two underscores:
/// `INFORM_MONITOR__WINDOW`.
const ENVIRONMENT_PREFIX: &str = "INFORM_";

impl ServerConfig {
    /// Reads the settings. `file` is TOML; `flags` are pairs of dotted keys and values, as TOML or as
    /// bare text.
    ///
    /// # Errors
    /// A file that is missing or not TOML, an unknown key, a value of the wrong type or out of range;
    /// the message names the key and where it was set.
    pub fn read(file: Option<&Path>, flags: &[(String, String)]) -> anyhow::Result<Self> {
        let mut settings = Figment::from(Serialized::defaults(Self::default()));
        if let Some(file) = file {
            anyhow::ensure!(file.is_file(), "{}: no such file", file.display());
            settings = settings.merge(Toml::file_exact(file));
        }
        settings =
            settings.merge(Env::prefixed(ENVIRONMENT_PREFIX).split("__").ignore(&["config"]));
        for (key, value) in flags {
            settings = settings.merge(Serialized::global(key, parse(key, value)));
        }
        let config: Self = settings.extract().map_err(|error| explain(&error))?;
        config.check()?;
        Ok(config)
    }

    /// The settings of each model, the first one first, with the names of the others. These have journals of their own, `NAME`
    /// before the file's suffix; rewards to check at the start are the first one's.
    pub fn each_model(&self) -> Vec<(Option<&str>, Self)> {
        let others = self.models.iter().map(|NamedModel { name, model, objectives, ensemble }| {
            let mut config = self.clone();
            config.model.clone_from(model);
            config.objectives.clone_from(objectives);
            config.ensemble.clone_from(ensemble);
            config.verify.file = PathBuf::new();
            let journal = &mut config.monitor.journal.path;
            if let Some(stem) = journal.file_stem() {
                let mut file = stem.to_owned();
                file.push(format!("-{name}"));
                if let Some(suffix) = journal.extension() {
                    file.push(".");
                    file.push(suffix);
                }
                journal.set_file_name(file);
            }
            (Some(name.as_str()), config)
        });
        std::iter::once((None, self.clone())).chain(others).collect()
    }

    /// Checks that no further model is called as the first, whose name is that of its opened checkpoint.
    ///
    /// # Errors
    /// The key of the further model's name.
    pub fn check_first_name(&self, first: &str) -> anyhow::Result<()> {
        let mut others = self.models.iter().enumerate();
        others.try_for_each(|(number, other)| check_distinct(number, &other.name, first))
    }

    fn check(&self) -> anyhow::Result<()> {
        for (key, value) in [
            ("limits.max_inputs", self.limits.max_inputs),
            ("limits.max_body_bytes", self.limits.max_body_bytes),
            ("limits.max_connections", self.limits.max_connections),
            ("limits.header_timeout_ms", self.limits.header_timeout_ms as usize),
            ("limits.body_timeout_ms", self.limits.body_timeout_ms as usize),
            ("engine.token_budget", self.engine.token_budget),
            ("engine.turn_tokens", self.engine.turn_tokens),
            ("engine.queue_tokens", self.engine.queue_tokens),
            ("mistralrs.sequences", self.mistralrs.sequences),
        ] {
            anyhow::ensure!(value > 0, "{key}: must be at least 1");
        }
        for (number, NamedModel { name, .. }) in self.models.iter().enumerate() {
            for other in &self.models[..number] {
                check_distinct(number, name, &other.name)?;
            }
            let is_safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            anyhow::ensure!(
                (1..=64).contains(&name.len()) && name.chars().all(is_safe),
                "models.{number}.name: must be 1 to 64 letters, digits, `.`, `_` and `-`, found {name:?}"
            );
        }
        let first = (String::new(), &self.objectives, &self.ensemble);
        let others = self.models.iter().enumerate();
        let others =
            others.map(|(number, m)| (format!("models.{number}."), &m.objectives, &m.ensemble));
        for (prefix, objectives, ensemble) in std::iter::once(first).chain(others) {
            anyhow::ensure!(
                objectives.weights.iter().all(|weight| weight.is_finite()),
                "{prefix}objectives.weights: must be finite numbers"
            );
            anyhow::ensure!(
                ensemble.lambda.is_finite() && ensemble.lambda >= 0.0,
                "{prefix}ensemble.lambda: must be a number, and not negative"
            );
        }
        anyhow::ensure!(self.verify.tolerance >= 0.0, "verify.tolerance: must not be negative");
        let pieces = &self.cuda.product_rows;
        anyhow::ensure!(
            !pieces.is_empty() && pieces.iter().all(|rows| (1..=65_536).contains(rows)),
            "cuda.product_rows: must name at least one number of rows, each from 1 to 65536"
        );
        let Limits { default_deadline_ms, max_deadline_ms, .. } = self.limits;
        anyhow::ensure!(
            default_deadline_ms > 0 && default_deadline_ms <= max_deadline_ms,
            "limits.default_deadline_ms: must be from 1 to limits.max_deadline_ms ({max_deadline_ms})"
        );
        Ok(self.monitor.check()?)
    }
}

/// Refuses a further model's name by which requests could also mean another model, or its latents.
fn check_distinct(number: usize, name: &str, other: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        name != other,
        "models.{number}.name: two models are called {name}: give one another name"
    );
    let is_latents = |name: &str, of: &str| name.strip_suffix(LATENTS) == Some(of);
    anyhow::ensure!(
        !is_latents(name, other) && !is_latents(other, name),
        "models.{number}.name: found {name} beside {other}, and `{LATENTS}` behind a name asks for the model's \
         latents: give one another name"
    );
    Ok(())
}

/// A flag's value: TOML where it is TOML, else text.
fn parse(key: &str, value: &str) -> figment::value::Value {
    let text = || figment::value::Value::from(value);
    let parsed = value.parse().unwrap_or_else(|_| text());
    // Training calls its folders `500`.
    if key == "model" && parsed.as_str().is_none() { text() } else { parsed }
}

/// All errors, each with its key and where it was set.
fn explain(error: &figment::Error) -> anyhow::Error {
    let lines: Vec<String> = error
        .clone()
        .into_iter()
        .map(|error| {
            let key = error.path.join(".");
            let source = error
                .metadata
                .as_ref()
                .map(|metadata| match &metadata.source {
                    // Defaults are never wrong.
                    Some(figment::Source::Code(_)) => " (command line)".to_owned(),
                    Some(source) => format!(" ({source})"),
                    None => format!(" ({})", metadata.name),
                })
                .unwrap_or_default();
            let separator = if key.is_empty() { "" } else { ": " };
            format!("{key}{separator}{}{source}", error.kind)
        })
        .collect();
    anyhow::anyhow!("{}", lines.join("\n"))
}
