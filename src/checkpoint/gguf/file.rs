//! An opened GGUF file, and its metadata by key.

use std::path::Path;

use serde_json::Value;

use super::container::Container;
use crate::checkpoint::files::CheckpointError;

/// An opened GGUF file.
#[derive(Debug)]
pub(super) struct GgufFile {
    pub(super) container: Container,
}

impl GgufFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// A file that is none, ends too early, is a part of a split model, or has a tensor of an unknown type.
    pub(super) fn open(file: &Path) -> Result<Self, CheckpointError> {
        let gguf = Self { container: Container::open(file)? };
        match gguf.metadata("split.count").and_then(Value::as_u64) {
            Some(count) if count > 1 => Err(gguf.wrong(
                "split.count",
                format!("this is one of {count} files: join them with llama-gguf-split --merge"),
            )),
            _ => Ok(gguf),
        }
    }

    /// The file.
    pub(super) fn file(&self) -> &Path {
        &self.container.file
    }

    pub(super) fn metadata(&self, key: &str) -> Option<&Value> {
        self.container.metadata.get(key)
    }

    /// The value of a key, as `read` sees it.
    pub(super) fn value<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, CheckpointError> {
        let value = self.metadata(key).ok_or_else(|| {
            self.wrong(key, format!("the metadata has no such key, expected {expected}"))
        })?;
        read(value).ok_or_else(|| {
            let mut found = value.to_string();
            if found.len() > 80 {
                found = "something longer".to_owned();
            }
            self.wrong(key, format!("found {found}, expected {expected}"))
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<&str, CheckpointError> {
        self.value(key, "a text", Value::as_str)
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.value(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub(super) fn list<'a, T>(
        &'a self,
        key: &str,
        of: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Vec<T>, CheckpointError> {
        self.value(key, &format!("a list of {of}"), |value| {
            value.as_array()?.iter().map(read).collect()
        })
    }

    /// What `read` gives where the metadata has the key, else `None`.
    pub(super) fn optional<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&'a Self, &str) -> Result<T, CheckpointError>,
    ) -> Result<Option<T>, CheckpointError> {
        self.metadata(key).map(|_| read(self, key)).transpose()
    }

    pub(super) fn wrong(&self, key: &str, message: String) -> CheckpointError {
        CheckpointError::Config { file: self.file().to_owned(), key: key.to_owned(), message }
    }
}
