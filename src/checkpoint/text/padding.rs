//! The token that fills up the rows of a batch, in libraries that pad.
//!
//! transformers pools at the last token that is not padding, so that the EOS, at which a reward is read, must not be it;
//! many tokenizers say that it is.

use serde_json::Value;
use tokenizers::Tokenizer;

use super::policy::{SpecialToken, token_text};
use crate::checkpoint::decoder::DecoderConfig;
use crate::checkpoint::files::{CheckpointError, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use crate::checkpoint::source::CheckpointSource;

/// The checkpoint's own padding token where that is not the EOS; else the unknown token, BOS, or any other. Which one it
/// is changes no reward, because nothing attends to it.
///
/// # Errors
/// A tokenizer's file that cannot be read, or one that knows no token but the EOS.
pub(crate) fn padding_token(
    source: &CheckpointSource,
    decoder: &DecoderConfig,
    eos: &SpecialToken,
) -> Result<SpecialToken, CheckpointError> {
    let file = source.path_of(TOKENIZER_FILE);
    let wrong = |message: String| CheckpointError::Tokenizer { file: file.clone(), message };
    let bytes = source.read(TOKENIZER_FILE)?.unwrap_or_default();
    let tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| wrong(error.to_string()))?;
    let settings: Value = match source.read(TOKENIZER_CONFIG_FILE)? {
        Some(text) => serde_json::from_slice(&text).map_err(|error| CheckpointError::Json {
            file: source.path_of(TOKENIZER_CONFIG_FILE),
            source: error,
        })?,
        None => Value::Null,
    };
    let keys = source.config_keys()?;
    let named = |name: &str| tokenizer.token_to_id(&token_text(settings.get(name))?);
    let numbered = |name: &str| u32::try_from(keys.get(name)?.as_u64()?).ok();
    let own =
        [named("pad_token"), numbered("pad_token_id"), named("unk_token"), named("bos_token")];
    let any = (0..).take(tokenizer.get_vocab_size(true)).map(Some);
    own.into_iter()
        .chain(any)
        .flatten()
        .filter(|&id| id != eos.id && (id as usize) < decoder.vocab_size)
        .find_map(|id| Some(SpecialToken { text: tokenizer.id_to_token(id)?, id }))
        .ok_or_else(|| {
            wrong("knows no token but the EOS, so that no batch can be padded".to_owned())
        })
}
