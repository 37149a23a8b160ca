//! What is served: checkpoints, and how their rewards become one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::Aggregate;

/// What is appended to a model's name for latents instead of rewards.
pub const LATENTS: &str = "-latents";

/// Settings of a head with several labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectivesConfig {
    /// Weight of each label in the reward, in the order of their ids; empty for a head with one.
    pub weights: Vec<f32>,
}

/// Settings of an ensemble.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnsembleConfig {
    /// Further checkpoints beside `model`; empty for no ensemble.
    pub members: Vec<PathBuf>,
    /// How members' rewards become one.
    pub aggregate: Aggregate,
    /// What `uwo` takes off for each unit of variance.
    pub lambda: f64,
}

impl Default for EnsembleConfig {
    fn default() -> Self {
        Self { members: Vec::new(), aggregate: Aggregate::default(), lambda: 0.1 }
    }
}

/// A model beside the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedModel {
    /// What requests call it.
    pub name: String,
    /// Its checkpoint.
    pub model: PathBuf,
    /// As [`ServerConfig::objectives`](crate::config::ServerConfig::objectives), of this model.
    #[serde(default)]
    pub objectives: ObjectivesConfig,
    /// As [`ServerConfig::ensemble`](crate::config::ServerConfig::ensemble), of this model.
    #[serde(default)]
    pub ensemble: EnsembleConfig,
}
