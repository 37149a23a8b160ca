//! A GGUF file as the Hugging Face folder that it could have been made from.

use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::container::TensorInfo;
use super::file::GgufFile;
use super::names::{StoredForm, TensorNames};
use super::{config, tokenizer};
use crate::checkpoint::files::{
    CheckpointError, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
};

const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    file: GgufFile,
}

impl Gguf {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// A file that is none, ends too early, is a part of a split model, or has a tensor of an unknown type.
    pub fn open(file: &Path) -> Result<Self, CheckpointError> {
        Ok(Self { file: GgufFile::open(file)? })
    }

    /// The file.
    pub fn file(&self) -> &Path {
        self.file.file()
    }

    /// What `config.json` would say.
    ///
    /// # Errors
    /// An unknown architecture, or a metadata key that is missing or of another type.
    pub fn config_keys(&self) -> Result<Map<String, Value>, CheckpointError> {
        config::keys(&self.file)
    }

    /// What a file of the tokenizer's would hold: `tokenizer.json`, `tokenizer_config.json` and
    /// `chat_template.jinja`; `None` for others, and for a template that is not there.
    ///
    /// # Errors
    /// An unknown kind of tokenizer, or a metadata key that is missing or of another type.
    pub fn text_file(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let json = |value: &Value| Some(value.to_string().into_bytes());
        Ok(match name {
            TOKENIZER_FILE => json(&tokenizer::tokenizer_json(&self.file)?),
            TOKENIZER_CONFIG_FILE => json(&tokenizer::tokenizer_config(&self.file)?),
            TEMPLATE_FILE => match self.file.metadata(TEMPLATE_KEY) {
                Some(_) => Some(self.file.text(TEMPLATE_KEY)?.as_bytes().to_vec()),
                None => None,
            },
            _ => None,
        })
    }

    /// The tensors by Hugging Face's names, how the file has their values, and where.
    ///
    /// # Errors
    /// As [`Gguf::config_keys`], or queries or keys whose rows are no whole rotary pairs.
    pub(in crate::checkpoint) fn tensors(
        &self,
    ) -> Result<Vec<(String, StoredForm, TensorInfo)>, CheckpointError> {
        let names = TensorNames::of(&self.file)?;
        let tensors = self.file.container.tensors.iter().map(|tensor| {
            let (name, form) = names.place(&tensor.name);
            let rows = tensor.shape.first().copied().unwrap_or_default();
            match form {
                StoredForm::Pairs { heads }
                    if rows == 0 || heads == 0 || !rows.is_multiple_of(2 * heads) =>
                {
                    Err(CheckpointError::DamagedGguf {
                        file: self.file().to_owned(),
                        message: format!("tensor `{}`: {rows} rows for {heads} heads", tensor.name),
                    })
                }
                form => Ok((name, form, tensor.clone())),
            }
        });
        tensors.collect()
    }

    /// The file's path, and its bytes.
    pub(in crate::checkpoint) fn into_bytes(self) -> (PathBuf, Mmap) {
        let container = self.file.container;
        (container.file, container.map)
    }
}
