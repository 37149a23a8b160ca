//! Qwen3: Llama with norms of each head's queries and keys, and windows as Qwen2.

use super::{Keys, base, heads, llama, qwen2, with_whole_rope};
use crate::checkpoint::{CheckpointError, DecoderConfig};

pub(super) fn read(keys: &Keys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = base(keys, heads(keys, Some(128))?)?;
    decoder.attention = with_whole_rope(keys, decoder.attention)?;
    decoder.architecture.biases = llama::attention_biases(keys)?;
    decoder.architecture.query_key_norm = true;
    decoder.architecture.sliding = qwen2::sliding(keys, &decoder)?;
    keys.expect("hidden_act", "silu".to_owned())?;
    Ok(decoder)
}
