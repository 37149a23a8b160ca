//! Fresh weights: a decoder from scratch, or a reward head on a given backbone.

use crate::checkpoint::{DecodeKind, DecoderConfig, HeadConfig, MemoryTensors};
use crate::ops::standard_normal;

/// Adds `model.*` for a new decoder: normal weights of standard deviation 0.02, those that write to
/// the residual stream smaller by `sqrt(2 layers)` (Radford et al. 2019), scales of norms 1.
pub fn initialise_decoder(tensors: &mut MemoryTensors, config: &DecoderConfig, seed: u64) {
    let mut random = Random { seed, stream: DECODER };
    let hidden = config.hidden_size;
    let inner = config.intermediate_size;
    let query = config.attention.output_columns();
    let key_value = config.attention.key_value_heads * config.attention.head_dim;
    let output = 0.02 / (2.0 * config.num_hidden_layers as f32).sqrt();
    let mut normal = |name: String, rows: usize, columns: usize, deviation: f32| {
        tensors.insert(&name, &[rows, columns], random.normal(rows * columns, deviation));
    };
    normal("model.embed_tokens.weight".to_owned(), config.vocab_size, hidden, 0.02);
    for layer in 0..config.num_hidden_layers {
        let name = |suffix: &str| format!("model.layers.{layer}.{suffix}.weight");
        normal(name("self_attn.q_proj"), query, hidden, 0.02);
        normal(name("self_attn.k_proj"), key_value, hidden, 0.02);
        normal(name("self_attn.v_proj"), key_value, hidden, 0.02);
        normal(name("self_attn.o_proj"), hidden, query, output);
        normal(name("mlp.gate_proj"), inner, hidden, 0.02);
        normal(name("mlp.up_proj"), inner, hidden, 0.02);
        normal(name("mlp.down_proj"), hidden, inner, output);
    }
    for layer in 0..config.num_hidden_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            let name = format!("model.layers.{layer}.{norm}.weight");
            tensors.insert(&name, &[hidden], vec![1.0; hidden]);
        }
    }
    tensors.insert("model.norm.weight", &[hidden], vec![1.0; hidden]);
}

/// Adds the tensors of a new reward head: normal weights of standard deviation
/// `1 / sqrt(inputs + 1)`, so that latents and rewards start at the scale of one.
pub fn initialise_head(tensors: &mut MemoryTensors, head: &HeadConfig, hidden: usize, seed: u64) {
    let mut random = Random { seed, stream: HEAD };
    let mut normal = |name: String, rows: usize, columns: usize| {
        let deviation = 1.0 / (columns as f32 + 1.0).sqrt();
        tensors.insert(&name, &[rows, columns], random.normal(rows * columns, deviation));
    };
    match head {
        HeadConfig::Standard(_) => normal("score.weight".to_owned(), 1, hidden),
        HeadConfig::Inform { latent_dim, decode, encode_head_prefix, decode_head_prefix } => {
            let d = *latent_dim;
            normal(format!("{encode_head_prefix}.weight"), 2 * d, hidden);
            match decode {
                DecodeKind::Linear => normal(format!("{decode_head_prefix}.weight"), 1, d),
                DecodeKind::Gated => {
                    normal(format!("{decode_head_prefix}.gate_proj.weight"), 4 * d, d);
                    normal(format!("{decode_head_prefix}.up_proj.weight"), 4 * d, d);
                    normal(format!("{decode_head_prefix}.down_proj.weight"), 1, 4 * d);
                }
            }
        }
    }
}

/// First of the Philox streams that a decoder's tensors take, one each.
const DECODER: u64 = 1 << 32;
/// First of the streams that a head's tensors take.
const HEAD: u64 = 2 << 32;

struct Random {
    seed: u64,
    stream: u64,
}

impl Random {
    fn normal(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        self.stream += 1;
        let values = standard_normal(self.seed, self.stream, count);
        values.into_iter().map(|value| deviation * value).collect()
    }
}
