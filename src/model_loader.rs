//! Opens the checkpoint, or the several of an ensemble, that the settings name.

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointError, HeadConfig, StandardHead, combined_hash};
use crate::config::{EnsembleConfig, ServerConfig};
use crate::model::{Aggregate, Aggregation, Ensemble, MemberSource, RewardModel, Scorer};
use crate::ops::Ops;

/// A label of a head with several.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Objective {
    /// Its name in `id2label`
    pub name: String,
    /// Its weight in the reward
    pub weight: f32,
}

/// What an ensemble is made of.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct EnsembleInfo {
    /// How members' rewards become one
    pub aggregate: Aggregate,
    /// What is taken off for each unit of variance; null where nothing is
    pub lambda: Option<f64>,
    /// The first one's latents are the ensemble's
    pub members: Vec<MemberInfo>,
}

/// A member of an ensemble.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct MemberInfo {
    /// Name of its checkpoint
    pub model: String,
    /// Its weights' hash
    pub weights: String,
    /// Its reward head
    #[schema(value_type = Object)]
    pub head: HeadConfig,
    /// The first member with the same backbone, from 0: that one's is computed
    pub backbone: usize,
}

/// An opened model: one checkpoint, or an ensemble's.
#[derive(Debug)]
pub struct ServedModel {
    /// The only checkpoint, or the ensemble's first: texts, latents and baseline are those of this one.
    pub checkpoint: Checkpoint,
    /// The ensemble, where there is one.
    pub ensemble: Option<ServedEnsemble>,
    /// Labels of the head with their weights in the reward; empty for a head with one label, and for an ensemble.
    pub objectives: Vec<Objective>,
    /// `sha256:` and 64 digits over everything that turns token ids into a reward: the checkpoint's hash; over it and the
    /// objectives' weights; of an ensemble over those of its members and how their rewards become one.
    pub weights: String,
}

/// The opened members of an ensemble beside the first, and how rewards become one.
#[derive(Debug)]
pub struct ServedEnsemble {
    /// The second member and all after it.
    pub others: Vec<Checkpoint>,
    /// Number of each member's backbone, of the first too: equal for members with the same one.
    pub backbones: Vec<usize>,
    /// How rewards become one.
    pub aggregation: Aggregation,
}

impl From<Checkpoint> for ServedModel {
    fn from(checkpoint: Checkpoint) -> Self {
        let weights = checkpoint.weights.clone();
        Self { checkpoint, ensemble: None, objectives: Vec::new(), weights }
    }
}

impl ServedModel {
    /// Opens what the settings name.
    ///
    /// # Errors
    /// A checkpoint that cannot be opened, weights of objectives that are not one for each label of every head, or members
    /// that do not read a text alike.
    pub fn open(config: &ServerConfig) -> anyhow::Result<Self> {
        let objectives = &config.objectives.weights;
        let mut checkpoint = Checkpoint::open(&config.model)?;
        let labels = weigh(&mut checkpoint, objectives)?;
        let EnsembleConfig { members, aggregate, lambda } = &config.ensemble;
        if members.is_empty() {
            let objectives = labels.into_iter().zip(objectives);
            let objectives = objectives.map(|(name, &weight)| Objective { name, weight }).collect();
            return Ok(Self { objectives, ..Self::from(checkpoint) });
        }
        let mut others = Vec::with_capacity(members.len());
        for path in members {
            let at = || format!("ensemble.members: {}", path.display());
            // The monitor's latents are the first member's: whatever baseline the others have is of no use.
            let mut member = Checkpoint::open_without_baseline(path).with_context(at)?;
            let theirs = weigh(&mut member, objectives).with_context(at)?;
            ensure!(
                theirs == labels,
                "{}: its labels are {theirs:?}, those of the first {labels:?}",
                at()
            );
            read_alike(&checkpoint, &member).with_context(at)?;
            others.push(member);
        }
        let aggregation = Aggregation { aggregate: *aggregate, lambda: *lambda };
        let all = || std::iter::once(&checkpoint).chain(&others);
        let hashes: Vec<String> = all().map(Checkpoint::backbone).collect();
        let first_alike = |hash| hashes.iter().position(|other| other == hash).unwrap_or_default();
        let backbones = hashes.iter().map(first_alike).collect();
        let rule = match aggregate {
            Aggregate::Mean => "mean".to_owned(),
            Aggregate::Uwo => format!("uwo {lambda}"),
            Aggregate::Wco => "wco".to_owned(),
        };
        let weights = all().map(|member| member.weights.as_str());
        let weights = combined_hash(std::iter::once(rule.as_str()).chain(weights));
        let ensemble = Some(ServedEnsemble { others, backbones, aggregation });
        Ok(Self { checkpoint, ensemble, objectives: Vec::new(), weights })
    }

    /// Every checkpoint, the first one first.
    pub fn members(&self) -> impl Iterator<Item = &Checkpoint> {
        let others = self.ensemble.iter().flat_map(|ensemble| &ensemble.others);
        std::iter::once(&self.checkpoint).chain(others)
    }

    /// What the ensemble is made of, where it is one.
    pub fn ensemble_info(&self) -> Option<EnsembleInfo> {
        let ServedEnsemble { backbones, aggregation, .. } = self.ensemble.as_ref()?;
        let Aggregation { aggregate, lambda } = *aggregation;
        let members = self.members().zip(backbones).map(|(member, &backbone)| MemberInfo {
            model: member.name.clone(),
            weights: member.weights.clone(),
            head: member.config.head.clone(),
            backbone,
        });
        Some(EnsembleInfo {
            aggregate,
            lambda: (aggregate == Aggregate::Uwo).then_some(lambda),
            members: members.collect(),
        })
    }

    /// Loads it to a device.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape or type; a part that the device does not compute.
    pub fn load<O>(&self, ops: O) -> Result<Box<dyn Scorer>, CheckpointError>
    where
        O: Ops + Send + Sync + 'static,
    {
        let Some(ServedEnsemble { backbones, aggregation, .. }) = &self.ensemble else {
            let Checkpoint { config, tensors, .. } = &self.checkpoint;
            return Ok(Box::new(RewardModel::load(ops, config, tensors)?));
        };
        let sources: Vec<MemberSource<'_>> = self
            .members()
            .zip(backbones)
            .map(|(Checkpoint { config, tensors, .. }, &backbone)| MemberSource {
                config,
                tensors,
                backbone,
            })
            .collect();
        Ok(Box::new(Ensemble::load(ops, &sources, *aggregation)?))
    }
}

/// Gives a checkpoint's head the weights of its labels, which its hash is then over, too. Answers the labels where there are
/// several.
fn weigh(checkpoint: &mut Checkpoint, weights: &[f32]) -> Result<Vec<String>, CheckpointError> {
    let hidden = checkpoint.config.decoder.hidden_size;
    let HeadConfig::Standard(standard) = &mut checkpoint.config.head else {
        if weights.is_empty() {
            return Ok(Vec::new());
        }
        return Err(CheckpointError::Unsupported(
            "`objectives.weights`: an InfoRM head has one reward, and no labels to weigh"
                .to_owned(),
        ));
    };
    weights.clone_into(&mut standard.objectives);
    let head = StandardHead::find(standard, hidden, &checkpoint.tensors)?;
    head.check_objectives(weights)?;
    if weights.is_empty() {
        return Ok(Vec::new());
    }
    let written: Vec<String> = weights.iter().map(f32::to_string).collect();
    let parts = ["objectives", &checkpoint.weights].into_iter();
    checkpoint.weights = combined_hash(parts.chain(written.iter().map(String::as_str)));
    Ok(head.labels)
}

/// Refuses a member that would score other token ids than the first, or cannot score all of the first's.
fn read_alike(first: &Checkpoint, member: &Checkpoint) -> anyhow::Result<()> {
    let (ours, theirs) = (first.encoder.policy(), member.encoder.policy());
    let name = first.folder.display();
    for (what, same) in [
        ("tokenizer", ours.tokenizer == theirs.tokenizer),
        ("chat template", ours.template == theirs.template),
        ("date of the chat template", ours.template_date == theirs.template_date),
        ("handling of BOS and EOS", ours == theirs),
    ] {
        ensure!(
            same,
            "its {what} is another than that of {name}: members must turn a text into the same token ids"
        );
    }
    let (found, expected) = (&member.config.decoder, &first.config.decoder);
    for (key, found, least) in [
        ("vocab_size", found.vocab_size, expected.vocab_size),
        (
            "max_position_embeddings",
            found.max_position_embeddings,
            expected.max_position_embeddings,
        ),
    ] {
        ensure!(
            found >= least,
            "`{key}` in config.json is {found}, that of {name} is {least}: it cannot score all that the first member can"
        );
    }
    Ok(())
}
