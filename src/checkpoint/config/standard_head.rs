//! A standard reward head: one linear layer on the pooled hidden state, under the names that libraries give it.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::checkpoint::tensors::TensorSource;

/// What the head's tensors are called before `.weight` and `.bias`, and who calls them so.
const PREFIXES: [&str; 4] = [
    // transformers' classes for sequences and tokens, OpenRLHF's reward models.
    "score",
    // OpenRLHF's critics.
    "value_head",
    // TRL's models with a value head.
    "v_head.summary",
    // transformers' class of GPT-NeoX for tokens.
    "classifier",
];

/// More than any head has; a name is made for each.
const MOST_LABELS: usize = 1 << 16;

/// What is known of a standard head before its tensors are looked at. Labels are not part of the weights' hash: they decide
/// no reward.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StandardConfig {
    /// What `value_head_prefix` says that its tensors are called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Names of its outputs, from `id2label` or `num_labels`; empty where neither says how many there are.
    #[serde(skip)]
    pub labels: Vec<String>,
    /// Weight of each label in the reward, for a head with several: whoever serves it decides that.
    #[serde(skip)]
    pub objectives: Vec<f32>,
}

impl StandardConfig {
    pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<Self, CheckpointError> {
        let names = match keys.object("id2label")? {
            None => Vec::new(),
            Some(map) => {
                let mut labels = Vec::with_capacity(map.len());
                for (id, name) in &map {
                    let id: usize = id
                        .parse()
                        .map_err(|_| keys.wrong("id2label", format!("{id:?} is no id")))?;
                    let name = name.as_str().ok_or_else(|| {
                        keys.wrong("id2label", format!("found {name} for {id}, expected a name"))
                    })?;
                    labels.push((id, name.to_owned()));
                }
                labels.sort();
                labels.into_iter().map(|(_, name)| name).collect()
            }
        };
        // As in transformers, names that are not as many as `num_labels` says are not used.
        let labels = match keys.get::<usize>("num_labels")? {
            Some(count) if count > MOST_LABELS => {
                return Err(keys.wrong("num_labels", format!("must be at most {MOST_LABELS}")));
            }
            Some(count) if count != names.len() => numbered(count),
            _ => names,
        };
        Ok(Self { prefix: keys.get("value_head_prefix")?, labels, objectives: Vec::new() })
    }
}

/// transformers' names for labels that have none.
fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|id| format!("LABEL_{id}")).collect()
}

/// A standard head's tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandardHead {
    /// Name of the weight `[labels, hidden]`.
    pub weight: String,
    /// Name of the bias `[labels]`, where there is one.
    pub bias: Option<String>,
    /// Names of the outputs; at least one.
    pub labels: Vec<String>,
}

impl StandardHead {
    /// Looks for the head among a checkpoint's tensors: by the name that its configuration gives, else by those that
    /// libraries use.
    ///
    /// # Errors
    /// No such tensor, or two of them; one that is not as wide as the hidden state, or has another number of labels than
    /// the configuration names.
    pub fn find(
        config: &StandardConfig,
        hidden: usize,
        source: &dyn TensorSource,
    ) -> Result<Self, CheckpointError> {
        let StandardConfig { prefix, labels, .. } = config;
        let named = prefix.iter().filter(|prefix| !PREFIXES.contains(&prefix.as_str()));
        let prefixes: Vec<&str> = named.map(String::as_str).chain(PREFIXES).collect();
        let there = |prefix: &&str| source.shape(&format!("{prefix}.weight")).is_some();
        let found: Vec<&str> = prefixes.iter().copied().filter(there).collect();
        let configured = prefix.as_deref().filter(there);
        let chosen = match (configured, found.as_slice()) {
            (Some(prefix), _) => prefix,
            (None, [prefix]) => *prefix,
            (None, []) => {
                let looked_for =
                    || prefixes.iter().map(|prefix| format!("{prefix}.weight")).collect();
                // Fails, with the file that has it not.
                source.values("score.weight", &[1, hidden]).map_err(|error| match error {
                    CheckpointError::MissingHead { file, expected, .. } => {
                        CheckpointError::MissingHead { file, tensors: looked_for(), expected }
                    }
                    error => error,
                })?;
                "score"
            }
            (None, several) => {
                return Err(CheckpointError::Unsupported(format!(
                    "the reward head may be any of {}: say which by `value_head_prefix` in config.json",
                    several.join(", ")
                )));
            }
        };
        let weight = format!("{chosen}.weight");
        let rows = match source.shape(&weight).as_deref() {
            Some([rows, _]) if *rows > 0 => *rows,
            _ => 1,
        };
        let labels = match labels.len() {
            0 => numbered(rows),
            count if count == rows => labels.clone(),
            // What has one output has one label, whatever a configuration that was made for something else says.
            _ if rows == 1 => numbered(1),
            // Loading the tensor says what is wrong with its shape.
            _ => return Ok(Self { weight, bias: None, labels: labels.clone() }),
        };
        let distinct: BTreeSet<&String> = labels.iter().collect();
        if distinct.len() < labels.len() {
            return Err(CheckpointError::Unsupported(format!(
                "`id2label` in config.json gives two labels one name: {}",
                labels.join(", ")
            )));
        }
        let bias = format!("{chosen}.bias");
        let bias = source.shape(&bias).map(|_| bias);
        Ok(Self { weight, bias, labels })
    }

    /// Refuses weights of objectives that are not one for each of several labels.
    ///
    /// # Errors
    /// Names the setting and the labels.
    pub fn check_objectives(&self, objectives: &[f32]) -> Result<(), CheckpointError> {
        let Self { labels, .. } = self;
        if labels.len() == objectives.len() || labels.len().max(objectives.len()) < 2 {
            return Ok(());
        }
        let names: Vec<String> =
            labels.iter().enumerate().map(|(id, name)| format!("{id} {name}")).collect();
        Err(CheckpointError::Unsupported(format!(
            "`objectives.weights`: found {}, the reward head has {} (`id2label`: {}): set a weight for each, in this order; the \
             trainer takes heads with one label",
            objectives.len(),
            labels.len(),
            names.join(", ")
        )))
    }
}
