//! Gemma 3, texts only: Gemma 2 with norms of queries and keys in the place of soft-caps, and rotary frequencies of their
//! own in the layers with a window.

use serde_json::{Map, Value};

use super::common_keys::{sliding_layers, window};
use super::gemma2::gemma;
use super::rope::RopeKeys;
use crate::checkpoint::decoder::{DecoderConfig, SlidingLayers};
use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::layer::AttentionShape;

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    if keys.object("text_config")?.is_some() {
        let message = "models for texts and images are not supported, Gemma3ForCausalLM is";
        return Err(keys.wrong("text_config", message));
    }
    let mut decoder = gemma(keys)?;
    decoder.architecture.query_key_norm = true;
    let pattern: usize = keys.or("sliding_window_pattern", 6)?;
    if pattern == 0 {
        return Err(keys.wrong("sliding_window_pattern", "must be at least 1"));
    }
    let slides = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let layers = sliding_layers(keys, decoder.num_hidden_layers, slides)?;
    let shape = decoder.attention;
    let (full, local) = ropes(keys)?;
    decoder.attention = full.into_shape(keys, shape)?;
    let attention =
        AttentionShape { window: window(keys, Some(4096))?, ..local.into_shape(keys, shape)? };
    decoder.architecture.sliding = Some(SlidingLayers { attention, layers });
    Ok(decoder)
}

/// Rotary embedding of the full and of the sliding layers.
fn ropes(keys: &ConfigKeys<'_>) -> Result<(RopeKeys, RopeKeys), CheckpointError> {
    let mut parameters = keys.object("rope_parameters")?.unwrap_or_default();
    let mut of = |kind: &str, theta: &str, default: f64| {
        let mut map = match parameters.remove(kind) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map,
            Some(other) => {
                let message = format!("{kind}: must be an object, found {other}");
                return Err(keys.wrong("rope_parameters", message));
            }
        };
        let theta = keys.positive(theta)?.unwrap_or(default);
        map.entry("rope_theta").or_insert(theta.into());
        if kind == "full_attention" {
            map.extend(keys.object("rope_scaling")?.unwrap_or_default());
        }
        RopeKeys::of(keys, &format!("rope_parameters.{kind}"), &map)
    };
    let full = of("full_attention", "rope_theta", 1_000_000.0)?;
    Ok((full, of("sliding_attention", "rope_local_base_freq", 10_000.0)?))
}
