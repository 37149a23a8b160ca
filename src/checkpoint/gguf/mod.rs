//! GGUF files: quantised weights, configuration, tokenizer and chat template in one, as llama.cpp writes them.
//!
//! A file is translated into the files of a Hugging Face folder, which the rest reads: `config.json` from the
//! metadata ([`config`]), the tokenizer's files ([`tokenizer`]), and tensors by Hugging Face's names ([`names`]).

mod blocks;
mod config;
mod container;
mod names;
mod tokenizer;

use std::path::Path;

use serde_json::{Map, Value};

pub(super) use blocks::BlockType;
pub(super) use container::Container;

use super::tensors::Stored;
use super::{CheckpointError, FolderTensors, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};

const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    container: Container,
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// A file that is none, ends too early, is a part of a split model, or has a tensor of an unknown type.
    pub fn open(file: &Path) -> Result<Self, CheckpointError> {
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
    pub fn file(&self) -> &Path {
        &self.container.file
    }

    /// What `config.json` would say.
    ///
    /// # Errors
    /// An unknown architecture, or a metadata key that is missing or of another type.
    pub fn config_keys(&self) -> Result<Map<String, Value>, CheckpointError> {
        config::keys(self)
    }

    /// What a file of the tokenizer's would hold: `tokenizer.json`, `tokenizer_config.json` and
    /// `chat_template.jinja`; `None` for others, and for a template that is not there.
    ///
    /// # Errors
    /// An unknown kind of tokenizer, or a metadata key that is missing or of another type.
    pub fn text_file(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let json = |value: &Value| Some(value.to_string().into_bytes());
        Ok(match name {
            TOKENIZER_FILE => json(&tokenizer::tokenizer_json(self)?),
            TOKENIZER_CONFIG_FILE => json(&tokenizer::tokenizer_config(self)?),
            TEMPLATE_FILE => match self.metadata(TEMPLATE_KEY) {
                Some(_) => Some(self.text(TEMPLATE_KEY)?.as_bytes().to_vec()),
                None => None,
            },
            _ => None,
        })
    }

    /// The weights, by Hugging Face's names and with rows in its order.
    ///
    /// # Errors
    /// As [`Gguf::config_keys`], or queries or keys whose rows are no whole rotary pairs.
    pub(super) fn into_tensors(self) -> Result<FolderTensors, CheckpointError> {
        let names = names::TensorNames::of(&self)?;
        for tensor in &self.container.tensors {
            let (_, Stored::Pairs { heads }) = names.place(&tensor.name) else { continue };
            let rows = tensor.shape.first().copied().unwrap_or_default();
            if rows == 0 || heads == 0 || !rows.is_multiple_of(2 * heads) {
                return Err(CheckpointError::DamagedGguf {
                    file: self.file().to_owned(),
                    message: format!("tensor `{}`: {rows} rows for {heads} heads", tensor.name),
                });
            }
        }
        Ok(FolderTensors::of_gguf(self.container, |name| names.place(name)))
    }

    fn metadata(&self, key: &str) -> Option<&Value> {
        self.container.metadata.get(key)
    }

    /// The value of a key, as `read` sees it.
    fn value<'a, T>(
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

    fn text(&self, key: &str) -> Result<&str, CheckpointError> {
        self.value(key, "a text", Value::as_str)
    }

    fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.value(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn list<'a, T>(
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
    fn optional<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&'a Self, &str) -> Result<T, CheckpointError>,
    ) -> Result<Option<T>, CheckpointError> {
        self.metadata(key).map(|_| read(self, key)).transpose()
    }

    fn wrong(&self, key: &str, message: String) -> CheckpointError {
        CheckpointError::Config { file: self.file().to_owned(), key: key.to_owned(), message }
    }
}
