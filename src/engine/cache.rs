//! Scores that were computed before.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use prometheus::IntGauge;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::metrics::Metrics;
use crate::model::{Latent, Parts, Score};

/// Bytes that an entry takes besides what its score holds: key, score, and the cache's own nodes.
const ENTRY_BYTES: usize = 384;

/// Settings of the score cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Bytes that the cache may take; 0 for no cache.
    pub max_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { max_bytes: 256 << 20 }
    }
}

/// What is scored: SHA-256 over the weights' hash and the token ids, and the draws of the latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ScoreKey {
    digest: [u8; 32],
    draws: usize,
}

impl ScoreKey {
    /// The same text without draws: its score.
    pub(super) fn without_draws(self) -> Self {
        Self { draws: 0, ..self }
    }
}

/// A score, and the reward's standard deviation where the key has draws.
#[derive(Debug, Clone)]
pub(super) struct KnownScore {
    pub(super) score: Arc<Score>,
    pub(super) reward_std: Option<f32>,
}

/// Scores by weights and token ids, least recently used out first. A reward depends on these alone, so a
/// cached score is bitwise the computed one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ScoreCache {
    entries: Option<Cache<ScoreKey, KnownScore>>,
    weights: Sha256,
    bytes: IntGauge,
    count: IntGauge,
}

impl ScoreCache {
    /// An empty cache of scores that the weights of hash `weights` give.
    pub fn new(weights: &str, config: &CacheConfig, metrics: &Metrics) -> Self {
        let entries = (config.max_bytes > 0).then(|| {
            Cache::builder()
                .max_capacity(config.max_bytes)
                .weigher(|_, known: &KnownScore| u32::try_from(bytes(known)).unwrap_or(u32::MAX))
                .eviction_policy(EvictionPolicy::lru())
                .build()
        });
        Self {
            entries,
            weights: Sha256::new_with_prefix(weights),
            bytes: metrics.cache_bytes.clone(),
            count: metrics.cache_entries.clone(),
        }
    }

    pub(super) fn key(&self, ids: &[u32], draws: usize) -> ScoreKey {
        let mut hash = self.weights.clone();
        let mut block = [0; 256];
        for ids in ids.chunks(block.len() / 4) {
            for (bytes, id) in block.chunks_exact_mut(4).zip(ids) {
                bytes.copy_from_slice(&id.to_le_bytes());
            }
            hash.update(&block[..4 * ids.len()]);
        }
        ScoreKey { digest: hash.finalize().into(), draws }
    }

    pub(super) fn get(&self, key: &ScoreKey) -> Option<KnownScore> {
        self.entries.as_ref()?.get(key)
    }

    pub(super) fn is_on(&self) -> bool {
        self.entries.is_some()
    }

    pub(super) fn insert(&self, key: ScoreKey, known: KnownScore) {
        if let Some(entries) = &self.entries {
            entries.insert(key, known);
        }
    }

    /// Does what insertions left to do, and publishes the size.
    pub(super) fn tidy(&self) {
        if let Some(entries) = &self.entries {
            entries.run_pending_tasks();
            self.bytes.set(entries.weighted_size() as i64);
            self.count.set(entries.entry_count() as i64);
        }
    }
}

fn bytes(known: &KnownScore) -> usize {
    let Score { latent, parts, .. } = &*known.score;
    let parts = match parts {
        Parts::Whole => 0,
        Parts::Objectives(values) => size_of_val(values.as_slice()),
        Parts::Members(members) => {
            let latents = members.iter().map(|member| latent_bytes(&member.latent));
            size_of_val(members.as_slice()) + latents.sum::<usize>()
        }
    };
    ENTRY_BYTES + latent_bytes(latent) + parts
}

/// Bytes of a latent's numbers.
fn latent_bytes(latent: &Option<Latent>) -> usize {
    let numbers = latent.as_ref().map_or(0, |latent| latent.mean.len() + latent.sigma.len());
    size_of::<f32>() * numbers
}
