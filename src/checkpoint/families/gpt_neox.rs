//! GPT-NeoX and Pythia: layer norm, parallel residual, GELU, biases, rotary embedding of a part of the channels; queries,
//! keys and values of a head lie together in one tensor.

use super::common_keys::base;
use super::place::{FusedRows, TensorPlace};
use super::rope::RopeKeys;
use crate::checkpoint::decoder::{
    Architecture, Biases, DecoderConfig, Family, MlpKind, NormKind, Residual,
};
use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::layer::{AttentionShape, Gelu};

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let (hidden_size, heads) = (keys.count("hidden_size")?, keys.count("num_attention_heads")?);
    if !hidden_size.is_multiple_of(2 * heads) {
        let message =
            format!("{hidden_size} leaves no even number of channels to each of {heads} heads");
        return Err(keys.wrong("hidden_size", message));
    }
    let shape = AttentionShape {
        heads,
        key_value_heads: heads,
        head_dim: hidden_size / heads,
        ..AttentionShape::default()
    };
    let rope = RopeKeys::read_or(keys, |map| {
        for (key, own, default) in [
            ("rope_theta", "rotary_emb_base", 10_000.0),
            ("partial_rotary_factor", "rotary_pct", 0.25),
        ] {
            let value = keys.positive(own)?.unwrap_or(default);
            map.entry(key).or_insert(value.into());
        }
        Ok(())
    })?;
    let activation: String = keys.or("hidden_act", "gelu".to_owned())?;
    let gelu = match activation.as_str() {
        "gelu" => Gelu::Exact,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Gelu::Tanh,
        other => {
            let known = "gelu, gelu_new, gelu_fast and gelu_pytorch_tanh";
            return Err(keys.wrong("hidden_act", format!("found {other:?}, supported are {known}")));
        }
    };
    let attention_bias = keys.or("attention_bias", true)?;
    Ok(DecoderConfig {
        rms_norm_eps: keys.or("layer_norm_eps", 1e-5)?,
        architecture: Architecture {
            norm: NormKind::Layer,
            mlp: MlpKind::Plain(gelu),
            residual: match keys.or("use_parallel_residual", true)? {
                true => Residual::Parallel,
                false => Residual::Sequential,
            },
            biases: Biases {
                query_key_value: attention_bias,
                attention_output: attention_bias,
                mlp: true,
            },
            ..Architecture::default()
        },
        ..base(keys, rope.into_shape(keys, shape)?)?
    })
}

/// Llama's names after the prefix, and ours.
const NAMES: [(&str, &str); 5] = [
    ("embed_tokens.", "embed_in."),
    ("gpt_neox.norm.", "gpt_neox.final_layer_norm."),
    ("self_attn.o_proj.", "attention.dense."),
    ("mlp.up_proj.", "mlp.dense_h_to_4h."),
    ("mlp.down_proj.", "mlp.dense_4h_to_h."),
];

pub(super) fn place(decoder: &DecoderConfig, name: &str) -> TensorPlace {
    let own = name.replacen("model.", Family::GptNeoX.prefix(), 1);
    let parts = [("q_proj", 0), ("k_proj", 1), ("v_proj", 2)];
    let part = parts.iter().find(|(part, _)| name.contains(&format!("self_attn.{part}.")));
    let Some((part, index)) = part else {
        let renamed = NAMES.iter().fold(own, |name, (llama, own)| name.replace(llama, own));
        return TensorPlace::whole(&renamed);
    };
    let AttentionShape { heads, head_dim, .. } = decoder.attention;
    let start = |head: usize| (3 * head + index) * head_dim;
    let ranges = (0..heads).map(|head| start(head)..start(head) + head_dim).collect();
    TensorPlace {
        name: own.replace(&format!("self_attn.{part}"), "attention.query_key_value"),
        rows: Some(FusedRows { count: 3 * heads * head_dim, ranges }),
    }
}
