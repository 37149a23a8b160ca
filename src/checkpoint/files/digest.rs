//! Hashes, as `sha256:` and 64 hexadecimal digits.

use sha2::{Digest, Sha256};

/// The hash of a file's contents, as `sha256sum` has it.
pub(in crate::checkpoint) fn file_hash(contents: &[u8]) -> String {
    named(Sha256::new_with_prefix(contents))
}

/// What a finished hash is called.
pub(in crate::checkpoint) fn named(hash: Sha256) -> String {
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The hash of a model that is made of several, or of one and of how it is used.
pub(crate) fn combined_hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update("\n");
    }
    named(hash)
}
