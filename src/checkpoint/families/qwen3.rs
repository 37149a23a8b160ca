//! Qwen3: Llama with norms of each head's queries and keys, and windows as Qwen2.

use super::common_keys::{base, heads, with_whole_rope};
use super::{llama, qwen2};
use crate::checkpoint::decoder::DecoderConfig;
use crate::checkpoint::files::{CheckpointError, ConfigKeys};

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = base(keys, heads(keys, Some(128))?)?;
    decoder.attention = with_whole_rope(keys, decoder.attention)?;
    decoder.architecture.biases = llama::attention_biases(keys)?;
    decoder.architecture.query_key_norm = true;
    decoder.architecture.sliding = qwen2::sliding(keys, &decoder)?;
    keys.expect("hidden_act", "silu".to_owned())?;
    Ok(decoder)
}
