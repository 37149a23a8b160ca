//! Mistral: Llama with a sliding window in every layer.

use super::common_keys::{base, heads, window, with_whole_rope};
use crate::checkpoint::decoder::DecoderConfig;
use crate::checkpoint::files::{CheckpointError, ConfigKeys};

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = base(keys, heads(keys, None)?)?;
    decoder.attention = with_whole_rope(keys, decoder.attention)?;
    decoder.attention.window = window(keys, Some(4096))?;
    keys.expect("hidden_act", "silu".to_owned())?;
    Ok(decoder)
}
