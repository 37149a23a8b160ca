//! Phi-3 and Phi-4-mini: Llama with a sliding window, the long ones for texts of up to the first training's length, whose queries, keys and values are one tensor, gate and up another.

use super::common_keys::{base, heads, window};
use super::place::{FusedRows, TensorPlace};
use super::rope::RopeKeys;
use crate::checkpoint::decoder::DecoderConfig;
use crate::checkpoint::files::{CheckpointError, ConfigKeys};

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let rope = RopeKeys::read_or(keys, |map| {
        // What early releases called longrope.
        for key in ["rope_type", "type"] {
            if map.get(key).is_some_and(|kind| kind == "su" || kind == "yarn") {
                map.insert(key.to_owned(), "longrope".into());
            }
        }
        map.entry("original_max_position_embeddings").or_insert(4096.into());
        Ok(())
    })?;
    let mut decoder = base(keys, heads(keys, None)?)?;
    decoder.rms_norm_eps = keys.or("rms_norm_eps", 1e-5)?;
    decoder.attention = rope.into_shape(keys, decoder.attention)?;
    decoder.attention.window = window(keys, None)?;
    keys.expect("hidden_act", "silu".to_owned())?;
    Ok(decoder)
}

pub(super) fn place(decoder: &DecoderConfig, name: &str) -> TensorPlace {
    let query = decoder.attention.output_columns();
    let key = decoder.attention.key_value_heads * decoder.attention.head_dim;
    let inner = decoder.intermediate_size;
    let (qkv, gate_up) = (query + 2 * key, 2 * inner);
    // Llama's name, ours, and which of its rows.
    let parts = [
        ("q_proj", "qkv_proj", qkv, 0..query),
        ("k_proj", "qkv_proj", qkv, query..query + key),
        ("v_proj", "qkv_proj", qkv, query + key..qkv),
        ("gate_proj", "gate_up_proj", gate_up, 0..inner),
        ("up_proj", "gate_up_proj", gate_up, inner..gate_up),
    ];
    let is_in = |part: &str| name.contains(&format!(".{part}."));
    let Some((part, own, count, range)) = parts.into_iter().find(|(part, ..)| is_in(part)) else {
        return TensorPlace::whole(name);
    };
    TensorPlace {
        name: name.replace(&format!(".{part}."), &format!(".{own}.")),
        rows: Some(FusedRows { count, ranges: vec![range] }),
    }
}
