//! Keys of `config.json` that families have in common.

use super::rope::RopeKeys;
use crate::checkpoint::decoder::{Architecture, DecoderConfig};
use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::layer::AttentionShape;

/// A decoder of Llama's keys and layers with these heads.
pub(super) fn base(
    keys: &ConfigKeys<'_>,
    attention: AttentionShape,
) -> Result<DecoderConfig, CheckpointError> {
    Ok(DecoderConfig {
        vocab_size: keys.count("vocab_size")?,
        hidden_size: keys.even("hidden_size")?,
        intermediate_size: keys.even("intermediate_size")?,
        num_hidden_layers: keys.count("num_hidden_layers")?,
        attention,
        max_position_embeddings: keys.count("max_position_embeddings")?,
        rms_norm_eps: keys.or("rms_norm_eps", 1e-6)?,
        architecture: Architecture::default(),
    })
}

/// Heads and their width; without `head_dim` that is `default`, or what the hidden size leaves each.
pub(super) fn heads(
    keys: &ConfigKeys<'_>,
    default: Option<usize>,
) -> Result<AttentionShape, CheckpointError> {
    let heads = keys.count("num_attention_heads")?;
    let key_value_heads = keys.or("num_key_value_heads", heads)?;
    if key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
        return Err(keys.wrong(
            "num_key_value_heads",
            format!("{key_value_heads} does not divide the {heads} query heads"),
        ));
    }
    let hidden_size = keys.even("hidden_size")?;
    let head_dim = keys.or("head_dim", default.unwrap_or(hidden_size / heads))?;
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(keys.wrong("head_dim", format!("must be even, found {head_dim}")));
    }
    Ok(AttentionShape { heads, key_value_heads, head_dim, ..AttentionShape::default() })
}

/// Adds the rotary embedding of layers that all have the same; every channel must be rotated.
pub(super) fn with_whole_rope(
    keys: &ConfigKeys<'_>,
    shape: AttentionShape,
) -> Result<AttentionShape, CheckpointError> {
    let rope = RopeKeys::read(keys)?;
    if rope.partial != 1.0 {
        return Err(keys.wrong("partial_rotary_factor", "this family rotates all channels"));
    }
    rope.into_shape(keys, shape)
}

/// The window of `sliding_window`: `default` where the key is missing, none where it is null.
pub(super) fn window(
    keys: &ConfigKeys<'_>,
    default: Option<usize>,
) -> Result<Option<usize>, CheckpointError> {
    match keys.unless_null("sliding_window", default)? {
        Some(0) => Err(keys.wrong("sliding_window", "must be at least 1")),
        window => Ok(window),
    }
}

/// Which layers slide: as `layer_types` lists them, else as `default` says.
pub(super) fn sliding_layers(
    keys: &ConfigKeys<'_>,
    count: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, CheckpointError> {
    let Some(kinds) = keys.get::<Vec<String>>("layer_types")? else {
        return Ok((0..count).map(default).collect());
    };
    if kinds.len() != count {
        let message = format!("names {} layers, num_hidden_layers is {count}", kinds.len());
        return Err(keys.wrong("layer_types", message));
    }
    let slides = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(keys.wrong(
            "layer_types",
            format!("found {other:?}, known are \"full_attention\" and \"sliding_attention\""),
        )),
    };
    kinds.iter().map(slides).collect()
}
