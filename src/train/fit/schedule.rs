//! Batches and the learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine down to the final share (Loshchilov and Hutter 2017).
    Cosine,
    /// A line down to the final share.
    Linear,
    /// Not at all.
    Constant,
}

/// Epochs, batches, warm-up and decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Shape of the decay.
    pub kind: ScheduleKind,
    /// Passes over the training pairs.
    pub epochs: usize,
    /// Pairs of one optimiser step.
    pub pairs_per_step: usize,
    /// Tokens of a micro-batch, of which a step takes as many as its pairs need, adding their gradients; 0 for one
    /// micro-batch. What a pair's two texts begin with counts once.
    pub micro_batch_tokens: usize,
    /// Share of all steps in which the learning rate rises from 0.
    pub warmup_share: f64,
    /// Learning rate at the last step, as a share of the peak.
    pub final_share: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            epochs: 1,
            pairs_per_step: 64,
            micro_batch_tokens: 8192,
            warmup_share: 0.03,
            final_share: 0.1,
        }
    }
}

impl ScheduleConfig {
    pub(in crate::train) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.epochs > 0, "schedule.epochs: must be at least 1");
        anyhow::ensure!(self.pairs_per_step > 0, "schedule.pairs_per_step: must be at least 1");
        for (key, share) in [("warmup_share", self.warmup_share), ("final_share", self.final_share)]
        {
            anyhow::ensure!((0.0..=1.0).contains(&share), "schedule.{key}: must be from 0 to 1");
        }
        Ok(())
    }

    /// Share of the peak learning rate at `step`, from 0, of `steps`.
    pub fn share(&self, step: usize, steps: usize) -> f64 {
        let warmup = (self.warmup_share * steps as f64).ceil();
        let step = step as f64;
        if step < warmup {
            return (step + 1.0) / warmup;
        }
        let progress = (step - warmup) / (steps as f64 - warmup - 1.0).max(1.0);
        let decay = match self.kind {
            ScheduleKind::Cosine => (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Constant => 1.0,
        };
        self.final_share + (1.0 - self.final_share) * decay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_ends_at_the_final_share() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let schedule = ScheduleConfig { kind, warmup_share: 0.1, ..ScheduleConfig::default() };
            let shares: Vec<f64> = (0..100).map(|step| schedule.share(step, 100)).collect();
            assert_eq!(shares[9], 1.0);
            assert!(shares[..10].is_sorted());
            assert!(shares[10..].is_sorted_by(|a, b| a >= b));
            assert!((shares[99] - 0.1).abs() < 1e-12);
        }
    }
}
