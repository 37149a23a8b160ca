//! Where a checkpoint is read from: a Hugging Face style folder, a GGUF file, which is read as the folder that it
//! could have been made from, or either of them in a hub's cache.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::hub::{HubModel, locate};
use crate::checkpoint::files::{CONFIG_FILE, CheckpointError, TEXT_FILES, read_json};
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::tensors::FolderTensors;

/// An opened folder or file.
#[derive(Debug)]
pub struct CheckpointSource {
    name: String,
    kind: SourceKind,
}

#[derive(Debug)]
enum SourceKind {
    Folder(PathBuf),
    Gguf(Box<Gguf>),
}

impl CheckpointSource {
    /// Opens a folder or a GGUF file. A path where nothing is may be the id of a model on a hub.
    ///
    /// # Errors
    /// A file that is no GGUF, or a damaged one; a hub's model that is not to be had. Whether a folder is a
    /// checkpoint, its files will tell.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let model = path.to_str().filter(|_| !path.exists()).and_then(HubModel::parse);
        if let Some(model) = model {
            let found = Self::of_path(&locate(&model)?)?;
            return Ok(Self { name: model.repository, ..found });
        }
        Self::of_path(path)
    }

    fn of_path(path: &Path) -> Result<Self, CheckpointError> {
        let text = |name: Option<&OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() {
            let kind = SourceKind::Gguf(Box::new(Gguf::open(path)?));
            return Ok(Self { name: text(path.file_stem()), kind });
        }
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Ok(Self { name: text(whole.file_name()), kind: SourceKind::Folder(path.to_owned()) })
    }

    /// What the checkpoint is called: the folder's name, the file's without its suffix, or the hub's id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder, or the file.
    pub fn path(&self) -> &Path {
        match &self.kind {
            SourceKind::Folder(folder) => folder,
            SourceKind::Gguf(gguf) => gguf.file(),
        }
    }

    /// The file that an error about `name` is to name.
    pub(in crate::checkpoint) fn path_of(&self, name: &str) -> PathBuf {
        match &self.kind {
            SourceKind::Folder(folder) => folder.join(name),
            SourceKind::Gguf(gguf) => gguf.file().to_owned(),
        }
    }

    /// The keys of `config.json`.
    ///
    /// # Errors
    /// A missing file, or a metadata key that is missing or of another type.
    pub fn config_keys(&self) -> Result<Map<String, Value>, CheckpointError> {
        match &self.kind {
            SourceKind::Folder(folder) => read_json(&folder.join(CONFIG_FILE)),
            SourceKind::Gguf(gguf) => gguf.config_keys(),
        }
    }

    /// The contents of a file, or `None` where there is none of that name.
    ///
    /// # Errors
    /// A file that cannot be read, or metadata that it cannot be made of.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        match &self.kind {
            SourceKind::Folder(folder) => {
                let file = folder.join(name);
                if !file.exists() {
                    return Ok(None);
                }
                std::fs::read(&file).map(Some).map_err(CheckpointError::io(&file))
            }
            SourceKind::Gguf(gguf) => gguf.text_file(name),
        }
    }

    /// The files that decide a text's token ids, by name.
    ///
    /// # Errors
    /// As [`CheckpointSource::read`].
    pub fn text_files(&self) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
        let files = TEXT_FILES.into_iter().map(|name| Ok((name.to_owned(), self.read(name)?)));
        let there = files.filter_map(|file| match file {
            Ok((name, contents)) => contents.map(|contents| Ok((name, contents))),
            Err(error) => Some(Err(error)),
        });
        there.collect()
    }

    /// The weights.
    ///
    /// # Errors
    /// A missing or damaged file.
    pub fn into_tensors(self) -> Result<FolderTensors, CheckpointError> {
        match self.kind {
            SourceKind::Folder(folder) => FolderTensors::of_folder(&folder),
            SourceKind::Gguf(gguf) => FolderTensors::of_gguf(*gguf),
        }
    }
}

impl FolderTensors {
    /// Maps a folder's `model.safetensors`, or the shards that its index lists, or a GGUF file, and checks
    /// their headers.
    ///
    /// # Errors
    /// A missing, unreadable or truncated file, or a shard without a tensor that the index puts
    /// there.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        CheckpointSource::open(path)?.into_tensors()
    }
}
