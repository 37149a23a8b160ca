//! Writes a checkpoint folder so that a reader sees the old one or the new one, never a half.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensorError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tensors::SINGLE_FILE;
use super::{
    BASELINE_FILE, Baseline, CONFIG_FILE, CheckpointError, MemoryTensors, ModelConfig,
    TensorSource, TensorValues,
};

/// Type in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightType {
    /// 16-bit brain floats, rounded to nearest even.
    #[default]
    Bf16,
    /// 16-bit IEEE floats, rounded to nearest even.
    F16,
    /// 32-bit floats.
    F32,
}

impl WeightType {
    /// The type that holds a stored type's values: itself, or F32.
    pub(crate) fn holding(stored: &str) -> Self {
        match stored {
            "BF16" => Self::Bf16,
            "F16" => Self::F16,
            _ => Self::F32,
        }
    }

    /// What `dtype` of `config.json` calls it.
    pub(crate) fn config_name(self) -> &'static str {
        match self {
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
            Self::F32 => "float32",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }
}

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
    let (parent, name) = place(folder)?;
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

/// Refuses an output that is there already and is no checkpoint, or that holds one of the inputs: replacing it would remove
/// what nobody asked to remove.
///
/// # Errors
/// Names the folder, and why; also where it is no folder's name.
pub(crate) fn check_output(output: &Path, inputs: &[PathBuf]) -> Result<(), CheckpointError> {
    place(output)?;
    let refused = |message: String| CheckpointError::Config {
        file: output.to_owned(),
        key: "output".to_owned(),
        message,
    };
    let Ok(whole) = output.canonicalize() else { return Ok(()) };
    let holds =
        |input: &&PathBuf| input.canonicalize().is_ok_and(|input| input.starts_with(&whole));
    if let Some(input) = inputs.iter().find(holds) {
        return Err(refused(format!("{} would be replaced", input.display())));
    }
    let is_empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if output.join(CONFIG_FILE).exists() || is_empty() {
        return Ok(());
    }
    Err(refused("is there, and is no checkpoint that could be replaced".to_owned()))
}

/// The parent and the name of a folder that is to be written.
///
/// # Errors
/// Where the path names no folder of its own, as `.` or `/`.
pub(crate) fn place(folder: &Path) -> Result<(&Path, String), CheckpointError> {
    match (folder.parent(), folder.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((parent, name.to_string_lossy().into_owned()))
        }
        _ => Err(CheckpointError::Config {
            file: folder.to_owned(),
            key: "output".to_owned(),
            message: "must name a folder".to_owned(),
        }),
    }
}

/// Renames `temporary` to `folder`. Where a folder is there already the two are exchanged in one
/// step, which leaves the old one under the temporary name.
fn put_in_place(temporary: &Path, folder: &Path) -> Result<(), CheckpointError> {
    if !folder.exists() {
        return fs::rename(temporary, folder).map_err(CheckpointError::io(folder));
    }
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, temporary, CWD, folder, RenameFlags::EXCHANGE) {
            // Network and overlay file systems may lack the exchange.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            result => return result.map_err(|error| CheckpointError::io(folder)(error.into())),
        }
    }
    let replaced = Temporary(temporary.with_extension("replaced"));
    fs::rename(folder, &replaced.0).map_err(CheckpointError::io(folder))?;
    fs::rename(temporary, folder).map_err(CheckpointError::io(folder))
}

/// A folder that is removed when it is no longer needed, however the function ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn damaged(folder: &Path) -> impl FnOnce(safetensors::SafeTensorError) -> CheckpointError {
    let file = folder.to_owned();
    move |error| CheckpointError::Damaged { file, message: error.to_string() }
}

/// Writes a file of a folder in one step: whoever reads meanwhile sees the old one or the new one.
///
/// # Errors
/// A file that cannot be written; what was there before then stays.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let (parent, name) = place(path)?;
    let temporary = parent.join(format!(".{name}.writing-{}", std::process::id()));
    let replaced = write_file(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path).map_err(CheckpointError::io(path)));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced.and_then(|()| sync_folder(parent))
}

fn write_files(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<(), CheckpointError> {
    for (name, bytes) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
        write_file(&path, bytes)?;
        sync_folder(parent)?;
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(CheckpointError::io(path))
}

fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(CheckpointError::io(path))
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

impl TensorValues {
    /// Rounded to nearest even where the type holds fewer digits.
    fn stored_as(self, weight_type: WeightType) -> Self {
        match (self, weight_type) {
            (Self::Bf16(values), WeightType::Bf16) => Self::Bf16(values),
            (Self::F16(values), WeightType::F16) => Self::F16(values),
            (values, weight_type) => {
                let values = Vec::<f32>::from(values);
                match weight_type {
                    WeightType::F32 => Self::F32(values),
                    WeightType::Bf16 => {
                        Self::Bf16(values.into_iter().map(bf16::from_f32).collect())
                    }
                    WeightType::F16 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
                }
            }
        }
    }
}
