//! Llama.

use super::common_keys::{base, heads, with_whole_rope};
use crate::checkpoint::decoder::{Biases, DecoderConfig};
use crate::checkpoint::files::{CheckpointError, ConfigKeys};

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = base(keys, heads(keys, None)?)?;
    decoder.rms_norm_eps = keys.required("rms_norm_eps")?;
    decoder.attention = with_whole_rope(keys, decoder.attention)?;
    decoder.architecture.biases = attention_biases(keys)?;
    keys.expect("hidden_act", "silu".to_owned())?;
    keys.expect("mlp_bias", false)?;
    Ok(decoder)
}

/// `attention_bias` is of all four projections.
pub(super) fn attention_biases(keys: &ConfigKeys<'_>) -> Result<Biases, CheckpointError> {
    let has = keys.or("attention_bias", false)?;
    Ok(Biases { query_key_value: has, attention_output: has, mlp: false })
}
