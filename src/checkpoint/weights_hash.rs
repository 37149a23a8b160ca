//! Hashes of weights. They name everything that turns token ids into a reward.

use sha2::{Digest, Sha256};

use super::config::ModelConfig;
use super::decoder::DecoderConfig;
use super::files::named;
use super::tensors::FolderTensors;

/// SHA-256 over the configuration and, in the order of names, each tensor's name, type, shape and
/// bytes. Sharding, file names and the tokenizer do not change it.
pub(super) fn weights_hash(config: &ModelConfig, tensors: &FolderTensors) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(config).unwrap_or_default());
    tensors.for_each(|name, dtype, shape, bytes| {
        update(&mut hash, name, dtype, shape, bytes);
    });
    named(hash)
}

/// SHA-256 over the backbone alone: its configuration and its tensors, those whose names begin with `prefix`.
pub(super) fn backbone_hash(
    decoder: &DecoderConfig,
    tensors: &FolderTensors,
    prefix: &str,
) -> String {
    let mut hash = Sha256::new_with_prefix(serde_json::to_vec(decoder).unwrap_or_default());
    tensors.for_each(|name, dtype, shape, bytes| {
        if name.starts_with(prefix) {
            update(&mut hash, name, dtype, shape, bytes);
        }
    });
    named(hash)
}

fn update(hash: &mut Sha256, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
    hash.update(format!("\n{name} {dtype} {shape:?}\n"));
    hash.update(bytes);
}
