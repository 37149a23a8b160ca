//! What becomes of one input.

use crate::engine::JobScore;
use crate::input::ItemError;

/// What became of one input.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Length of the scored sequence; `None` where the input has no tokens.
    pub(super) tokens: Option<usize>,
    pub(super) truncated: bool,
    /// With the shaped reward, where the run's rewards are shaped.
    pub(super) scored: Result<JobScore, ItemError>,
    /// Whether the run's rewards are shaped.
    pub(super) is_shaped: bool,
    /// The model's reward, where `scored` has a shaped one.
    pub(super) raw_reward: Option<f32>,
}

impl Outcome {
    /// The reward; always finite.
    pub(super) fn reward(&self) -> Option<f32> {
        self.scored.as_ref().ok().map(|scored| scored.score.reward)
    }

    pub(super) fn error(&self) -> Option<&ItemError> {
        self.scored.as_ref().err()
    }
}
