//! The evaluation of a checkpoint on preference pairs.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::checkpoint::Checkpoint;
use crate::train::accuracy::{PairEvaluation, TextScorer};
use crate::train::data::{BadLines, PairLimits, encode_pairs, name_left_out, read_pairs};
use crate::train::features::{Compute, Depth};
use crate::train::fit::{TRAINING_FILE, TrainingRecord};

/// Which pairs checkpoints are evaluated on, and how.
#[derive(Debug, Clone)]
pub struct EvaluationSettings {
    /// Data files.
    pub data: Vec<PathBuf>,
    /// Whether only those pairs count that the checkpoint's training held out of these files.
    pub held_out: bool,
    /// What to do with a line that is no pair.
    pub bad_lines: BadLines,
    /// Longest sequence, in tokens; without it that of the training, or else the model's context.
    pub max_tokens: Option<usize>,
    /// Folder that keeps features of backbones.
    pub features: Option<PathBuf>,
    /// Where and how texts are scored.
    pub compute: Compute,
}

impl EvaluationSettings {
    /// Evaluates a checkpoint folder; what was left out of the data goes to standard error.
    ///
    /// # Errors
    /// A checkpoint or a file that cannot be read, a bad line that is to be refused, held-out pairs of other files than the
    /// training's, or a failing device.
    pub fn evaluate(&self, model: &Path) -> anyhow::Result<PairEvaluation> {
        let checkpoint = Checkpoint::open(model)?;
        let record = TrainingRecord::read(model)?;
        let depth = match &record {
            Some(record) => record.config.depth(&checkpoint.config.decoder)?,
            None => Depth::Pooled,
        };
        let mut scorer =
            TextScorer::load(&checkpoint, &self.compute, self.features.as_deref(), depth)?;
        let pairs = if self.held_out {
            let record = record.as_ref().with_context(|| {
                format!("{}: no {TRAINING_FILE}, which says what was held out", model.display())
            })?;
            record.held_out(&self.data)?
        } else {
            let (pairs, bad) = read_pairs(&self.data, self.bad_lines)?;
            name_left_out(&bad);
            pairs
        };
        let limit = checkpoint.encoder.limit();
        let trained = record.map(|record| record.config.data.max_tokens);
        let max_tokens = self.max_tokens.or(trained).unwrap_or(limit).min(limit);
        let limits = PairLimits { max_tokens, deduplicate: false };
        let (pairs, dropped) = encode_pairs(&checkpoint.encoder, &pairs, limits)?;
        name_left_out(&dropped.pairs);
        eprintln!("{}: {} pairs, dropped: {dropped}", model.display(), pairs.len());
        PairEvaluation::of(&mut scorer, &pairs)
    }
}
