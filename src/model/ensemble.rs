//! An ensemble of reward models (Coste et al., ICLR 2024): several rewards of one text, and one made of them.

use serde::{Deserialize, Serialize};

use super::decoder::Decoder;
use super::readout::Readout;
use super::score::{Member, Parts, Score};
use super::scorer::{ScoreError, Scorer};
use super::variance::{standard_deviation, variance};
use crate::checkpoint::{CheckpointError, ModelConfig, TensorSource};
use crate::ops::{Ops, OpsError, Packing};

/// How members' rewards become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Their mean
    #[default]
    Mean,
    /// Uncertainty-weighted optimisation: their mean less lambda times their variance
    Uwo,
    /// Worst-case optimisation: the least of them
    Wco,
}

/// [`Aggregate`] with its constant.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Aggregation {
    /// The rule.
    pub aggregate: Aggregate,
    /// Lambda of [`Aggregate::Uwo`].
    pub lambda: f64,
}

impl Aggregation {
    /// One reward of those of the members, at least one; NaN where one of them is. The variance is the members' own, over their number.
    pub fn reward(self, members: &[f64]) -> f64 {
        let mean = members.iter().sum::<f64>() / members.len().max(1) as f64;
        match self.aggregate {
            Aggregate::Mean => mean,
            Aggregate::Uwo => mean - self.lambda * variance(members),
            // `f64::min` would pass over NaN.
            Aggregate::Wco => members.iter().copied().fold(f64::INFINITY, |least, reward| {
                if reward.is_nan() || reward < least { reward } else { least }
            }),
        }
    }
}

/// What a member is loaded from.
#[allow(missing_debug_implementations)]
pub struct MemberSource<'a> {
    /// Its configuration.
    pub config: &'a ModelConfig,
    /// Its tensors.
    pub tensors: &'a dyn TensorSource,
    /// Number of its backbone: members with the same number have the same one, which is loaded from the first of them.
    pub backbone: usize,
}

/// Several reward models on one device. A backbone that members have in common is there once, and computed once.
#[derive(Debug)]
pub struct Ensemble<O: Ops> {
    ops: O,
    backbones: Vec<Decoder<O>>,
    members: Vec<EnsembleMember<O>>,
    aggregation: Aggregation,
}

#[derive(Debug)]
struct EnsembleMember<O: Ops> {
    /// Place of its backbone in [`Ensemble::backbones`].
    backbone: usize,
    readout: Readout<O>,
}

impl<O: Ops> Ensemble<O> {
    /// Builds the members and checks every tensor's shape.
    ///
    /// # Errors
    /// As [`RewardModel::load`](crate::model::RewardModel::load).
    pub fn load(
        ops: O,
        sources: &[MemberSource<'_>],
        aggregation: Aggregation,
    ) -> Result<Self, CheckpointError> {
        let mut backbones = Vec::new();
        let mut numbers: Vec<usize> = Vec::new();
        let mut members = Vec::with_capacity(sources.len());
        for (index, &MemberSource { config, tensors, backbone }) in sources.iter().enumerate() {
            let known = numbers.iter().position(|&number| number == backbone);
            let backbone = match known {
                Some(place) => place,
                None => {
                    numbers.push(backbone);
                    backbones.push(Decoder::load(&ops, &config.decoder, tensors, 0)?);
                    backbones.len() - 1
                }
            };
            // Members' latents are drawn independently.
            let readout = Readout::load(&ops, config, tensors)?.with_noise(index as u64);
            members.push(EnsembleMember { backbone, readout });
        }
        Ok(Self { ops, backbones, members, aggregation })
    }

    /// Scores of each member, `[members][sequences]`.
    fn scores_of_members(&self, packing: &Packing) -> Result<Vec<Vec<Score>>, OpsError> {
        let ops = &self.ops;
        let pooled: Vec<O::Matrix> = self
            .backbones
            .iter()
            .map(|decoder| decoder.pooled(ops, packing, decoder.embed(ops, packing)?))
            .collect::<Result<_, _>>()?;
        self.members
            .iter()
            .map(|EnsembleMember { backbone, readout }| {
                readout.scores(ops, &pooled[*backbone], self.backbones[*backbone].norm())
            })
            .collect()
    }

    /// The score that one text's members make.
    fn aggregated(&self, scores: Vec<Score>) -> Score {
        let rewards: Vec<f64> = scores.iter().map(|score| f64::from(score.reward)).collect();
        let members: Vec<Member> = scores
            .into_iter()
            .map(|Score { reward, latent, .. }| Member { reward, latent })
            .collect();
        Score {
            reward: self.aggregation.reward(&rewards) as f32,
            latent: members.first().and_then(|first| first.latent.clone()),
            parts: Parts::Members(members),
        }
    }
}

impl<O: Ops + Send + Sync> Scorer for Ensemble<O> {
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        let scores = self.ops.enter(|| self.scores_of_members(packing))?;
        let mut members: Vec<_> = scores.into_iter().map(Vec::into_iter).collect();
        let of_text = |_| self.aggregated(members.iter_mut().filter_map(Iterator::next).collect());
        Ok((0..packing.sequences()).map(of_text).collect())
    }

    fn reward_spread(&self, score: &Score, draws: usize) -> Result<Option<f32>, ScoreError> {
        let Parts::Members(members) = &score.parts else { return Ok(None) };
        if members.iter().all(|member| member.latent.is_none()) {
            return Ok(None);
        }
        let mut drawn = Vec::with_capacity(members.len());
        for (EnsembleMember { readout, .. }, member) in self.members.iter().zip(members) {
            drawn.push(match &member.latent {
                Some(latent) => readout.draws(&self.ops, latent, draws)?,
                None => vec![f64::from(member.reward); draws],
            });
        }
        let rewards: Vec<f64> = (0..draws)
            .map(|draw| {
                let rewards: Vec<f64> = drawn.iter().map(|rewards| rewards[draw]).collect();
                self.aggregation.reward(&rewards)
            })
            .collect();
        Ok(Some(standard_deviation(&rewards) as f32))
    }
}
