//! What the engine shows the monitor: scored answers, and where they come from.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Input, Message};
use crate::model::Latent;

/// What an answer is to its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The trained policy's.
    #[default]
    Policy,
    /// The SFT model's: part of the run's baseline.
    Baseline,
    /// Of an evaluation, which is not monitored.
    Eval,
}

/// Where an answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleOrigin {
    /// The run; `default` where the caller names none.
    pub run: String,
    /// The training step, where the caller names one.
    pub step: Option<u64>,
    /// What the answer is.
    pub role: Role,
    /// Id of the request.
    pub request: Arc<str>,
}

/// What is known of a text besides its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subject {
    /// [`prompt_fingerprint`], where the input has the prompt apart.
    pub prompt: Option<u64>,
    /// Characters (Unicode scalar values) of the response, where the input has it apart.
    pub response_characters: Option<u32>,
}

impl Subject {
    /// What an input tells: prompt and response of a conversation, nothing of a text without parts.
    pub fn of(input: &Input) -> Self {
        let Input::Messages(messages) = input else { return Self::default() };
        let Some((response, prompt)) = messages.split_last() else { return Self::default() };
        Self {
            prompt: Some(prompt_fingerprint(prompt)),
            response_characters: u32::try_from(response.content.chars().count()).ok(),
        }
    }
}

/// One scored answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Posterior mean `[d]`.
    pub latent: Vec<f32>,
    /// Mean over the dimensions of the posterior's standard deviation.
    pub sigma: f32,
    /// KL divergence of the posterior from `N(0, I)`, in nats.
    pub divergence: f32,
    /// The reward.
    pub reward: f32,
    /// Length of the scored sequence, in tokens.
    pub tokens: u32,
    /// Characters of the response, see [`Subject`].
    pub response_characters: Option<u32>,
    /// The prompt, see [`Subject`].
    pub prompt: Option<u64>,
    /// [`fingerprint`] of the scored sequence.
    pub sequence: u64,
    /// Id of the request that it was part of.
    pub request: Arc<str>,
    /// Which input of that request, from 0.
    pub index: u32,
}

/// What is known of a sequence before it is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    tokens: u32,
    sequence: u64,
    index: u32,
    subject: Subject,
}

impl Watched {
    /// Of a sequence's token ids; it is the input `index` of its request.
    pub fn new(ids: &[u32], index: usize, subject: Subject) -> Self {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Self {
            tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            sequence: fingerprint(&bytes),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            subject,
        }
    }

    /// With its reward and latent, as part of a request with this id.
    pub fn scored(self, reward: f32, latent: &Latent, request: Arc<str>) -> Sample {
        Sample {
            latent: latent.mean.clone(),
            sigma: latent.sigma.iter().sum::<f32>() / latent.sigma.len().max(1) as f32,
            divergence: latent.divergence(),
            reward,
            tokens: self.tokens,
            response_characters: self.subject.response_characters,
            prompt: self.subject.prompt,
            sequence: self.sequence,
            request,
            index: self.index,
        }
    }
}

/// The scored answers of one request.
#[derive(Debug, Clone)]
pub struct Observation {
    pub(in crate::monitor) origin: SampleOrigin,
    pub(in crate::monitor) samples: Vec<Sample>,
    pub(in crate::monitor) at: Instant,
}

impl Observation {
    /// An observation made now.
    pub fn new(origin: SampleOrigin, samples: Vec<Sample>) -> Self {
        Self { origin, samples, at: Instant::now() }
    }
}

/// The first 64 bits of the SHA-256 of some bytes: what stays the same over restarts, and differs for
/// different texts but for an accident of some `n^2 / 2^65` among `n` of them.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let (first, _) = digest.split_first_chunk().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*first)
}

/// The [`fingerprint`] of a prompt: of its messages, as JSON.
pub fn prompt_fingerprint(messages: &[Message]) -> u64 {
    // Serialisation of strings does not fail.
    fingerprint(&serde_json::to_vec(messages).unwrap_or_default())
}
