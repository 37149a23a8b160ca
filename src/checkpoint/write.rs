//! Writes a checkpoint folder so that a reader sees the old one or the new one, never a half.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::{self, File};
use std::path::Path;

use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensorError};
use serde_json::{Map, Value};

use super::baseline::Baseline;
use super::config::ModelConfig;
use super::files::{
    BASELINE_FILE, CONFIG_FILE, CheckpointError, SINGLE_FILE, Temporary, check_output,
    parent_and_name, put_in_place, sync_folder, write_file, write_files,
};
use super::tensors::{MemoryTensors, TensorSource, TensorValues, WeightType};

/// What a new checkpoint folder is made of.
#[derive(Debug)]
pub struct CheckpointFiles<'a> {
    /// Backbone and head.
    pub config: &'a ModelConfig,
    /// Keys of an earlier `config.json` to keep where [`ModelConfig`] does not decide them.
    pub other_keys: Map<String, Value>,
    /// The weights.
    pub tensors: &'a MemoryTensors,
    /// How to store them.
    pub weight_type: WeightType,
    /// Further files by name, which may begin with a folder: tokenizer, chat template, model card.
    pub files: Vec<(String, Vec<u8>)>,
}

/// A tensor that is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorLayout {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Type in which it is stored.
    pub weight_type: WeightType,
}

/// What a new checkpoint folder is made of whose tensors are read or made one at a time, while they are written.
pub struct CheckpointParts<'a> {
    /// `config.json`.
    pub config: Map<String, Value>,
    /// Which tensors are stored.
    pub layout: Vec<TensorLayout>,
    /// Gives a tensor's values; called once for each.
    pub values: &'a dyn Fn(&TensorLayout) -> Result<TensorValues, CheckpointError>,
    /// Further files by name, which may begin with a folder: tokenizer, chat template, model card.
    pub files: Vec<(String, Vec<u8>)>,
}

/// [`write_checkpoint_parts`] of weights in memory.
///
/// # Errors
/// As [`write_checkpoint_parts`].
pub fn write_checkpoint<E: From<CheckpointError>>(
    folder: &Path,
    contents: &CheckpointFiles<'_>,
    finish: impl FnOnce(&Path) -> Result<(Option<Baseline>, Vec<(String, Vec<u8>)>), E>,
) -> Result<(), E> {
    let mut config = contents.other_keys.clone();
    config.extend(contents.config.to_json());
    let layout = contents.tensors.iter().map(|(name, shape, _)| TensorLayout {
        name: name.to_owned(),
        shape: shape.to_vec(),
        weight_type: contents.weight_type,
    });
    let parts = CheckpointParts {
        config,
        layout: layout.collect(),
        values: &|layout| contents.tensors.values(&layout.name, &layout.shape),
        files: contents.files.clone(),
    };
    write_checkpoint_parts(folder, &parts, finish)
}

/// Writes the folder under a temporary name beside `folder`, flushes it to disk, and renames it. A
/// folder that was there is replaced. `finish` is called with the new folder's temporary path and
/// returns what can only be made with the very weights that were stored: a baseline, further files.
///
/// # Errors
/// Where `folder` is there and is no checkpoint, a tensor cannot be had or exceeds its type, a file cannot be written, or
/// `finish` fails; what was there before then stays.
pub fn write_checkpoint_parts<E: From<CheckpointError>>(
    folder: &Path,
    contents: &CheckpointParts<'_>,
    finish: impl FnOnce(&Path) -> Result<(Option<Baseline>, Vec<(String, Vec<u8>)>), E>,
) -> Result<(), E> {
    check_output(folder, &[])?;
    let (parent, name) = parent_and_name(folder)?;
    fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
    let process = std::process::id();
    let temporary = Temporary(parent.join(format!(".{name}.writing-{process}")));
    let _ = fs::remove_dir_all(&temporary.0);
    fs::create_dir(&temporary.0).map_err(CheckpointError::io(&temporary.0))?;

    let config = serde_json::to_vec_pretty(&contents.config)
        .map_err(|source| CheckpointError::Json { file: folder.join(CONFIG_FILE), source })?;
    write_file(&temporary.0.join(CONFIG_FILE), &config)?;
    write_tensors(&temporary.0.join(SINGLE_FILE), folder, contents)?;
    write_files(&temporary.0, &contents.files)?;
    let (baseline, files) = finish(&temporary.0)?;
    if let Some(baseline) = baseline {
        let bytes = baseline.to_bytes().map_err(damaged(folder))?;
        write_file(&temporary.0.join(BASELINE_FILE), &bytes)?;
    }
    write_files(&temporary.0, &files)?;
    sync_folder(&temporary.0)?;

    put_in_place(&temporary.0, folder)?;
    sync_folder(parent)?;
    Ok(())
}

fn damaged(folder: &Path) -> impl FnOnce(safetensors::SafeTensorError) -> CheckpointError {
    let file = folder.to_owned();
    move |error| CheckpointError::Damaged { file, message: error.to_string() }
}

/// Writes the tensors, with no more than one of them in memory. Errors about them name `folder`, where they are to be.
fn write_tensors(
    file: &Path,
    folder: &Path,
    contents: &CheckpointParts<'_>,
) -> Result<(), CheckpointError> {
    let failure = RefCell::default();
    let tensors = contents.layout.iter().map(|layout| {
        let pending = PendingTensor { folder, layout, values: contents.values, failure: &failure };
        (layout.name.as_str(), pending)
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let written = safetensors::serialize_to_file(tensors, Some(metadata), file);
    if let Some(error) = failure.take() {
        return Err(error);
    }
    written.map_err(|error| match error {
        SafeTensorError::IoError(source) => CheckpointError::io(file)(source),
        other => damaged(file)(other),
    })?;
    File::open(file).and_then(|file| file.sync_all()).map_err(CheckpointError::io(file))
}

/// A tensor whose values are asked for when the file has come to it.
struct PendingTensor<'a> {
    folder: &'a Path,
    layout: &'a TensorLayout,
    values: &'a dyn Fn(&TensorLayout) -> Result<TensorValues, CheckpointError>,
    /// The first error of any tensor of the file: the library's views cannot fail.
    failure: &'a RefCell<Option<CheckpointError>>,
}

impl PendingTensor<'_> {
    fn bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let TensorLayout { name, weight_type, .. } = self.layout;
        let values = (self.values)(self.layout)?.stored_as(*weight_type);
        if !values.is_finite() {
            return Err(CheckpointError::NotStored {
                folder: self.folder.to_owned(),
                tensor: name.clone(),
                weight_type: weight_type.config_name(),
            });
        }
        Ok(match values {
            TensorValues::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            TensorValues::F16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            TensorValues::Bf16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        })
    }
}

impl View for PendingTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.layout.weight_type.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    fn data_len(&self) -> usize {
        self.layout.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }

    /// Nothing once a tensor has failed: the file is thrown away.
    fn data(&self) -> Cow<'_, [u8]> {
        if self.failure.borrow().is_some() {
            return Cow::default();
        }
        let bytes = self.bytes().unwrap_or_else(|error| {
            self.failure.replace(Some(error));
            Vec::new()
        });
        Cow::Owned(bytes)
    }
}
