//! Drawing the tokens of a text, with random numbers that depend on nothing but the seed, the prompt, the sample's number
//! and the token's.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor};
use mistralrs::CustomLogitsProcessor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::generate::call::Sampling;

/// 32-bit words of the random stream that a token takes.
const WORDS: u128 = 2;

/// Draws the tokens of one text, in place of the engine's sampler, and keeps them.
pub(super) struct TokenSampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    prompt: usize,
    tokens: Mutex<Vec<u32>>,
}

impl TokenSampler {
    pub(super) fn new(sampling: &Sampling, prompt: &[u32], sample: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(sampling.seed.to_le_bytes());
        hash.update(sample.to_le_bytes());
        prompt.iter().for_each(|id| hash.update(id.to_le_bytes()));
        Self {
            sampling: *sampling,
            random: ChaCha8Rng::from_seed(hash.finalize().into()),
            prompt: prompt.len(),
            tokens: Mutex::default(),
        }
    }

    /// What was drawn so far.
    pub(super) fn tokens(&self) -> Vec<u32> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CustomLogitsProcessor for TokenSampler {
    /// Leaves one token possible. It is asked again for a token that a grammar does not allow, with the others masked.
    fn apply(&self, logits: &Tensor, context: &[u32]) -> Result<Tensor> {
        let position = context.len().saturating_sub(self.prompt);
        let values: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let mut random = self.random.clone();
        random.set_word_pos(position as u128 * WORDS);
        let Some(token) = self.sampling.draw(&values, random.random()) else {
            candle_core::bail!("the model gives no logits that are numbers");
        };
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.truncate(position);
        tokens.push(token);
        let mut possible = vec![f32::NEG_INFINITY; values.len()];
        possible[token as usize] = 0.0;
        Tensor::from_vec(possible, logits.shape(), logits.device())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_depend_on_seed_prompt_sample_and_position_alone() {
        let logits =
            Tensor::zeros(1000, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let draw = |seed: u64, prompt: &[u32], sample: u64, positions: &[usize]| {
            let sampling = Sampling { seed, top_p: 1.0, ..Sampling::default() };
            let sampler = TokenSampler::new(&sampling, prompt, sample);
            for position in positions {
                sampler.apply(&logits, &vec![7; prompt.len() + position]).unwrap();
            }
            sampler.tokens()
        };
        let tokens = draw(1, &[3, 4], 0, &[0, 1, 2, 3]);
        assert_eq!(draw(1, &[3, 4], 0, &[0, 1, 1, 2, 2, 3]), tokens);
        for other in [
            draw(2, &[3, 4], 0, &[0, 1, 2, 3]),
            draw(1, &[3, 5], 0, &[0, 1, 2, 3]),
            draw(1, &[3, 4], 1, &[0, 1, 2, 3]),
        ] {
            assert_ne!(other, tokens);
        }
    }
}
