//! Copies of golden checkpoints, and what is in a checkpoint's folder.

use std::fs;
use std::path::{Path, PathBuf};

use inform::checkpoint::CONFIG_FILE;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::support::golden::{golden, with_tokenizer};

/// A folder that is removed at the end, and what is made in it.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A copy of a golden checkpoint's files.
    pub(crate) fn copy(&self, of: &str, name: &str) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        for file in fs::read_dir(golden(of)).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        folder
    }

    /// A copy of a family's golden model, with a tokenizer.
    pub(crate) fn family(&self, family: &str) -> PathBuf {
        self.with_tokenizer(&format!("families/{family}"), family)
    }

    /// A copy of a golden checkpoint that has none, with a tokenizer.
    pub(crate) fn with_tokenizer(&self, of: &str, name: &str) -> PathBuf {
        let folder = self.path(name);
        with_tokenizer(&golden(of), &folder);
        folder
    }
}

/// A JSON file of a folder.
pub(crate) fn json_file(folder: &Path, name: &str) -> Map<String, Value> {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

pub(crate) fn config(folder: &Path) -> Map<String, Value> {
    json_file(folder, CONFIG_FILE)
}

pub(crate) fn set_config(folder: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let mut keys = config(folder);
    change(&mut keys);
    fs::write(folder.join(CONFIG_FILE), serde_json::to_vec(&keys).unwrap()).unwrap();
}

/// Names, types and bytes of the stored tensors, in the order of names.
pub(crate) fn stored(folder: &Path) -> Vec<(String, Dtype, Vec<u8>)> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, tensor)| (name, tensor.dtype(), tensor.data().to_vec()))
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}
