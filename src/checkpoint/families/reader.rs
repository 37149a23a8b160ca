//! From `config.json` to a decoder, by its family.

use super::{gemma2, gemma3, gpt_neox, llama, mistral, phi3, qwen2, qwen3};
use crate::checkpoint::decoder::{DecoderConfig, Family};
use crate::checkpoint::files::{CheckpointError, ConfigKeys};
use crate::layer::RopeScaling;

/// Reads what `config.json` says of the decoder.
pub(in crate::checkpoint) fn read_decoder(
    family: Family,
    keys: &ConfigKeys<'_>,
) -> Result<DecoderConfig, CheckpointError> {
    let mut decoder = match family {
        Family::Llama => llama::read(keys),
        Family::Mistral => mistral::read(keys),
        Family::Qwen2 => qwen2::read(keys),
        Family::Qwen3 => qwen3::read(keys),
        Family::GptNeoX => gpt_neox::read(keys),
        Family::Phi3 => phi3::read(keys),
        Family::Gemma2 => gemma2::read(keys),
        Family::Gemma3 => gemma3::read(keys),
    }?;
    decoder.architecture.family = family;
    if let RopeScaling::LongRope { original_max_position_embeddings: original, .. } =
        decoder.attention.rope_scaling
    {
        decoder.max_position_embeddings = decoder.max_position_embeddings.min(original);
    }
    // A window over the longest text is none.
    let longest = decoder.max_position_embeddings;
    let sliding = decoder.architecture.sliding.iter_mut().map(|sliding| &mut sliding.attention);
    for shape in sliding.chain([&mut decoder.attention]) {
        shape.window = shape.window.filter(|&window| window < longest);
    }
    Ok(decoder)
}
