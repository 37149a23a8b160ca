//! Gemma 2: soft-caps, windows in every other layer, norms before and after attention and MLP, GeGLU, scaled embeddings.

use super::common_keys::{base, heads, sliding_layers, window, with_whole_rope};
use super::llama;
use crate::checkpoint::decoder::{Architecture, DecoderConfig, MlpKind, Residual, SlidingLayers};
use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::layer::{AttentionShape, Gelu};

pub(super) fn read(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = gemma(keys)?;
    let soft_cap = match keys.unless_null("attn_logit_softcapping", Some(50.0))? {
        Some(cap) if !(cap > 0.0 && f32::is_finite(cap)) => {
            let message = format!("must be above 0, found {cap}");
            return Err(keys.wrong("attn_logit_softcapping", message));
        }
        cap => cap,
    };
    decoder.attention = AttentionShape { soft_cap, ..with_whole_rope(keys, decoder.attention)? };
    let layers = sliding_layers(keys, decoder.num_hidden_layers, |layer| layer % 2 == 0)?;
    let attention = AttentionShape { window: window(keys, Some(4096))?, ..decoder.attention };
    decoder.architecture.sliding = Some(SlidingLayers { attention, layers });
    Ok(decoder)
}

/// What Gemma 2 and 3 have in common.
pub(super) fn gemma(keys: &ConfigKeys<'_>) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = base(keys, heads(keys, Some(256))?)?;
    let scalar = keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    decoder.attention.score_scale = Some((1.0 / scalar.sqrt()) as f32);
    decoder.architecture = Architecture {
        mlp: MlpKind::GeGlu(Gelu::Tanh),
        residual: Residual::Normed,
        biases: llama::attention_biases(keys)?,
        embedding_scale: Some((decoder.hidden_size as f64).sqrt() as f32),
        ..Architecture::default()
    };
    keys.expect("hidden_activation", "gelu_pytorch_tanh".to_owned())?;
    keys.expect("use_bidirectional_attention", false)?;
    Ok(decoder)
}

/// Norms are scaled by one more than their tensor.
pub(super) fn offset(name: &str) -> f32 {
    if name.ends_with("norm.weight") { 1.0 } else { 0.0 }
}
