//! Writes a checkpoint folder so that a reader sees the old one or the new one, never a half.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{BASELINE_FILE, Baseline, CONFIG_FILE, CheckpointError, MemoryTensors, ModelConfig};

/// Type in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightType {
    /// 16-bit brain floats, rounded to nearest even.
    #[default]
    Bf16,
    /// 32-bit floats.
    F32,
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

/// Writes the folder under a temporary name beside `folder`, flushes it to disk, and renames it. A
/// folder that was there is replaced. `finish` is called with the new folder's temporary path and
/// returns what can only be made with the very weights that were stored: a baseline, further files.
///
/// # Errors
/// Where a file cannot be written, or `finish` fails; what was there before then stays.
pub fn write_checkpoint<E: From<CheckpointError>>(
    folder: &Path,
    contents: &CheckpointFiles<'_>,
    finish: impl FnOnce(&Path) -> Result<(Option<Baseline>, Vec<(String, Vec<u8>)>), E>,
) -> Result<(), E> {
    let (parent, name) = place(folder)?;
    fs::create_dir_all(parent).map_err(CheckpointError::io(parent))?;
    let process = std::process::id();
    let temporary = Temporary(parent.join(format!(".{name}.writing-{process}")));
    let _ = fs::remove_dir_all(&temporary.0);
    fs::create_dir(&temporary.0).map_err(CheckpointError::io(&temporary.0))?;

    let mut config = contents.other_keys.clone();
    config.extend(contents.config.to_json());
    let config = serde_json::to_vec_pretty(&config)
        .map_err(|source| CheckpointError::Json { file: folder.join(CONFIG_FILE), source })?;
    write_file(&temporary.0.join(CONFIG_FILE), &config)?;
    write_file(
        &temporary.0.join("model.safetensors"),
        &serialise(contents.tensors, contents.weight_type).map_err(damaged(folder))?,
    )?;
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

fn serialise(
    tensors: &MemoryTensors,
    weight_type: WeightType,
) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let encoded: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape, values)| {
            let bytes = match weight_type {
                WeightType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                WeightType::Bf16 => {
                    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
                }
            };
            (name, shape, bytes)
        })
        .collect();
    let dtype = match weight_type {
        WeightType::F32 => Dtype::F32,
        WeightType::Bf16 => Dtype::BF16,
    };
    let views = encoded
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(dtype, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(metadata))
}
