//! Models that score token sequences.

use thiserror::Error;

use super::score::Score;
use crate::ops::{OpsError, Packing};

/// A batch that could not be scored.
#[derive(Debug, Error)]
pub enum ScoreError {
    /// A sequence without tokens, or a batch without sequences.
    #[error("a batch needs at least one sequence, and each sequence at least one token")]
    Empty,
    /// The device failed.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// What computes hidden states failed.
    #[error("the encoder failed: {0}")]
    Encoder(String),
}

/// A model that scores token sequences, whatever its family and device.
pub trait Scorer: Send {
    /// Scores each packed sequence at its last token. How the sequences are packed changes no bit.
    ///
    /// # Errors
    /// A failing device. Token ids must be below the vocabulary size.
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError>;

    /// Scores each sequence at its last token, with common prefixes computed once.
    ///
    /// # Errors
    /// An empty batch or sequence, or a failing device.
    fn score(&self, sequences: &[&[u32]]) -> Result<Vec<Score>, ScoreError> {
        self.score_packed(&Packing::shared(sequences).ok_or(ScoreError::Empty)?)
    }

    /// Standard deviation of the reward over `draws` draws of a score's latents from their posteriors; `None` for a
    /// model without latents. The noise is the same for every text and every call.
    ///
    /// # Errors
    /// A failing device.
    fn reward_spread(&self, score: &Score, draws: usize) -> Result<Option<f32>, ScoreError>;
}
