//! Qwen2 and Qwen2.5: Llama with biases of queries, keys and values, and windows in the upper layers where they are
//! switched on.

use super::common_keys::{base, heads, sliding_layers, window, with_whole_rope};
use crate::checkpoint::decoder::{Biases, DecoderConfig, SlidingLayers};
use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::layer::AttentionShape;

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = base(keys, heads(keys, None)?)?;
    decoder.attention = with_whole_rope(keys, decoder.attention)?;
    decoder.architecture.biases = Biases { query_key_value: true, ..Biases::default() };
    decoder.architecture.sliding = sliding(keys, &decoder)?;
    keys.expect("hidden_act", "silu".to_owned())?;
    Ok(decoder)
}

/// The layers with a window.
pub(super) fn sliding(
    keys: &ConfigKeys<'_>,
    decoder: &DecoderConfig,
) -> Result<Option<SlidingLayers>, CheckpointError> {
    if !keys.or("use_sliding_window", false)? {
        return Ok(None);
    }
    let first: usize = keys.or("max_window_layers", 28)?;
    let layers = sliding_layers(keys, decoder.num_hidden_layers, |layer| layer >= first)?;
    let attention = AttentionShape { window: window(keys, Some(4096))?, ..decoder.attention };
    Ok(layers.contains(&true).then_some(SlidingLayers { attention, layers }))
}
