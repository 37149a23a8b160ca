//! What becomes of one input.

use crate::engine::JobScore;
use crate::input::ItemError;

/// What became of one input.
#[derive(Debug)]
pub(in crate::http) struct Outcome {
    /// Length of the scored sequence; `None` where the input has no tokens.
    pub(in crate::http) tokens: Option<usize>,
    pub(in crate::http) truncated: bool,
    /// With the shaped reward, where the run's rewards are shaped.
    pub(in crate::http) scored: Result<JobScore, ItemError>,
    /// Whether the run's rewards are shaped.
    pub(in crate::http) is_shaped: bool,
    /// The model's reward, where `scored` has a shaped one.
    pub(in crate::http) raw_reward: Option<f32>,
}

impl Outcome {
    /// The reward; always finite.
    pub(in crate::http) fn reward(&self) -> Option<f32> {
        self.scored.as_ref().ok().map(|scored| scored.score.reward)
    }

    pub(in crate::http) fn error(&self) -> Option<&ItemError> {
        self.scored.as_ref().err()
    }
}
