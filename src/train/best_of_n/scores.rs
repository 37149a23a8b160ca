//! What a checkpoint says of the samples.

use crate::monitor::Sample;
use crate::train::data::Response;
use crate::train::eval::Scoring;

/// What a checkpoint says of the samples, prompt by prompt.
pub(super) struct Scores {
    pub(super) rewards: Vec<Vec<f64>>,
    /// As the monitor takes them; `None` for a head without latents.
    pub(super) samples: Option<Vec<Vec<Sample>>>,
}

impl Scores {
    /// Scores every sample once; those of one prompt lie side by side, so that it is computed once a batch.
    ///
    /// # Errors
    /// A sample that is too long for the model, or whose reward or latent is not finite: names its file and line.
    pub(super) fn of(scoring: &mut Scoring<'_>, prompts: &[Vec<Response>]) -> anyhow::Result<Self> {
        let mut rest = scoring.responses(prompts.iter().flatten())?.into_iter();
        let mut rewards = Vec::with_capacity(prompts.len());
        let mut samples = Vec::with_capacity(prompts.len());
        for responses in prompts {
            let (own, latents): (Vec<f64>, Vec<Option<Sample>>) = rest
                .by_ref()
                .take(responses.len())
                .map(|(score, sample)| (f64::from(score.reward), sample))
                .unzip();
            rewards.push(own);
            samples.push(latents.into_iter().collect::<Option<Vec<Sample>>>());
        }
        Ok(Self { rewards, samples: samples.into_iter().collect() })
    }
}
