//! Hashes. That of the weights names everything that turns token ids into a reward.

use sha2::{Digest, Sha256};

use super::{FolderTensors, ModelConfig};

/// SHA-256 over the configuration and, in the order of names, each tensor's name, type, shape and
/// bytes. Sharding, file names and the tokenizer do not change it.
pub(super) fn weights_hash(config: &ModelConfig, tensors: &FolderTensors) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(config).unwrap_or_default());
    tensors.for_each(|name, dtype, shape, bytes| {
        hash.update(format!("\n{name} {dtype} {shape:?}\n"));
        hash.update(bytes);
    });
    named(hash)
}

/// The hash of a file's contents, as `sha256sum` has it.
pub(super) fn file_hash(contents: &[u8]) -> String {
    named(Sha256::new_with_prefix(contents))
}

fn named(hash: Sha256) -> String {
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}
