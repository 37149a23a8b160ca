//! Tensors by name in memory-mapped files.
//!
//! Formats: safetensors (an 8-byte little-endian header length, a JSON header, then the bytes), whose
//! shards are listed in `model.safetensors.index.json` under `weight_map`; and GGUF.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::memory::MemoryTensors;
use super::tensor_source::TensorSource;
use super::values::TensorValues;
use crate::checkpoint::decoder::Family;
use crate::checkpoint::files::{CheckpointError, INDEX_FILE, SINGLE_FILE, read_json};
use crate::checkpoint::gguf::{BlockType, Gguf, StoredForm};

/// How a tensor's bytes are to be read.
#[derive(Debug, Clone, Copy)]
enum StoredType {
    Safetensors(Dtype),
    Gguf(BlockType),
}

impl StoredType {
    /// The name that both formats have for floats.
    fn name(self) -> String {
        match self {
            Self::Safetensors(dtype) => format!("{dtype:?}"),
            Self::Gguf(kind) => kind.name(),
        }
    }
}

/// A tensor inside a mapped file.
#[derive(Debug, Clone)]
struct MappedTensor {
    file: usize,
    dtype: StoredType,
    shape: Vec<usize>,
    range: (usize, usize),
    form: StoredForm,
}

/// The tensors of a folder's safetensors files, or of a GGUF file, memory-mapped.
#[derive(Debug)]
pub struct FolderTensors {
    files: Vec<(PathBuf, Mmap)>,
    entries: BTreeMap<String, MappedTensor>,
    /// The file that an error about a missing tensor names.
    listing: PathBuf,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index names, each once.
pub(in crate::checkpoint) fn shards(index: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let Index { weight_map } = read_json(index)?;
    Ok(weight_map.into_values().collect())
}

impl FolderTensors {
    pub(in crate::checkpoint) fn of_folder(folder: &Path) -> Result<Self, CheckpointError> {
        let index = folder.join(INDEX_FILE);
        let single = folder.join(SINGLE_FILE);
        if single.exists() || !index.exists() {
            let mut tensors =
                Self { files: Vec::new(), entries: BTreeMap::new(), listing: single.clone() };
            tensors.map(&single)?;
            return Ok(tensors);
        }
        let mut tensors =
            Self { files: Vec::new(), entries: BTreeMap::new(), listing: index.clone() };
        let Index { weight_map } = read_json(&index)?;
        for shard in shards(&index)? {
            tensors.map(&folder.join(shard))?;
        }
        if let Some((name, shard)) =
            weight_map.iter().find(|(name, _)| !tensors.entries.contains_key(*name))
        {
            return Err(CheckpointError::Config {
                file: index,
                key: format!("weight_map.{name}"),
                message: format!("{shard} holds no such tensor"),
            });
        }
        Ok(tensors)
    }

    fn map(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io(path))?;
        // SAFETY: the mapping is read-only; a checkpoint that another process rewrites in place
        // while it is served is outside what a server can defend against.
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(path))?;
        let damaged = |error: safetensors::SafeTensorError| CheckpointError::Damaged {
            file: path.to_owned(),
            message: error.to_string(),
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(damaged)?;
        let data = header + 8;
        if map.len() != data + metadata.data_len() {
            return Err(CheckpointError::Damaged {
                file: path.to_owned(),
                message: format!(
                    "{} bytes, the header announces {}",
                    map.len(),
                    data + metadata.data_len()
                ),
            });
        }
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = MappedTensor {
                file: self.files.len(),
                dtype: StoredType::Safetensors(info.dtype),
                shape: info.shape.clone(),
                range: (data + start, data + end),
                form: StoredForm::AsItIs,
            };
            self.entries.insert(name, entry);
        }
        self.files.push((path.to_owned(), map));
        Ok(())
    }

    /// The tensors of a GGUF file, by Hugging Face's names and with rows in its order.
    ///
    /// # Errors
    /// As [`Gguf::config_keys`], or queries or keys whose rows are no whole rotary pairs.
    pub(in crate::checkpoint) fn of_gguf(gguf: Gguf) -> Result<Self, CheckpointError> {
        let tensors = gguf.tensors()?.into_iter().map(|(name, form, info)| {
            let dtype = StoredType::Gguf(info.kind);
            (name, MappedTensor { file: 0, dtype, shape: info.shape, range: info.range, form })
        });
        let entries = tensors.collect();
        let (file, map) = gguf.into_bytes();
        Ok(Self { entries, listing: file.clone(), files: vec![(file, map)] })
    }

    /// Shows name, type name, shape and bytes of every tensor, in the order of names.
    pub(crate) fn for_each(&self, mut show: impl FnMut(&str, &str, &[usize], &[u8])) {
        for ((name, dtype, shape), entry) in self.headers().zip(self.entries.values()) {
            show(name, &dtype, shape, self.bytes(entry));
            self.release(entry);
        }
    }

    /// Name, type name and shape of every tensor, in the order of names.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&str, String, &[usize])> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.dtype.name(), entry.shape.as_slice()))
    }

    /// What is beside the backbone is the head's.
    fn missing(&self, name: &str, shape: &[usize]) -> CheckpointError {
        let (file, tensor, expected) = (self.listing.clone(), name.to_owned(), shape.to_vec());
        match Family::is_backbone(name) {
            true => CheckpointError::MissingTensor { file, tensor, expected },
            false => CheckpointError::MissingHead { file, tensors: vec![tensor], expected },
        }
    }

    fn bytes(&self, entry: &MappedTensor) -> &[u8] {
        &self.files[entry.file].1[entry.range.0..entry.range.1]
    }

    /// Takes what was read of the file out of this process's memory; the next read maps it again.
    fn release(&self, entry: &MappedTensor) {
        let (start, end) = entry.range;
        // SAFETY: the mapping is read-only and its pages are the file's: dropping them loses nothing.
        let released = unsafe {
            self.files[entry.file].1.unchecked_advise_range(
                UncheckedAdvice::DontNeed,
                start,
                end - start,
            )
        };
        // Only memory is at stake.
        released.unwrap_or_else(|error| tracing::debug!(%error, "mapped pages stay"));
    }

    /// Every tensor as f32: for a program that changes a checkpoint and writes it again.
    ///
    /// # Errors
    /// A tensor of a type other than F32, F16 and BF16.
    pub fn to_memory(&self) -> Result<MemoryTensors, CheckpointError> {
        let mut tensors = MemoryTensors::default();
        for (name, entry) in &self.entries {
            tensors.insert(name, &entry.shape, self.f32(name, &entry.shape)?);
        }
        Ok(tensors)
    }
}

impl TensorSource for FolderTensors {
    fn values(&self, name: &str, shape: &[usize]) -> Result<TensorValues, CheckpointError> {
        let entry = self.entries.get(name).ok_or_else(|| self.missing(name, shape))?;
        let file = &self.files[entry.file].0;
        if entry.shape != shape {
            return Err(CheckpointError::WrongShape {
                file: file.clone(),
                tensor: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let bytes = self.bytes(entry);
        let (twos, _) = bytes.as_chunks::<2>();
        let (fours, _) = bytes.as_chunks::<4>();
        let values = match entry.dtype {
            StoredType::Safetensors(Dtype::F32) | StoredType::Gguf(BlockType::F32) => {
                TensorValues::F32(fours.iter().map(|&b| f32::from_le_bytes(b)).collect())
            }
            StoredType::Safetensors(Dtype::F16) | StoredType::Gguf(BlockType::F16) => {
                TensorValues::F16(twos.iter().map(|&b| f16::from_le_bytes(b)).collect())
            }
            StoredType::Safetensors(Dtype::BF16) | StoredType::Gguf(BlockType::BF16) => {
                TensorValues::Bf16(twos.iter().map(|&b| bf16::from_le_bytes(b)).collect())
            }
            StoredType::Gguf(blocks) => TensorValues::F32(blocks.dequantise(bytes)),
            StoredType::Safetensors(other) => {
                return Err(CheckpointError::WrongType {
                    file: file.clone(),
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                    expected: "F32, F16 or BF16".to_owned(),
                });
            }
        };
        let values = match entry.form {
            StoredForm::AsItIs => values,
            StoredForm::Pairs { heads } => values.with_halves_apart(shape[0], heads),
            StoredForm::OneMore => TensorValues::F32(
                Vec::from(values).into_iter().map(|value: f32| value - 1.0).collect(),
            ),
        };
        self.release(entry);
        if !values.is_finite() {
            return Err(CheckpointError::NotFinite { file: file.clone(), tensor: name.to_owned() });
        }
        Ok(values)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.entries.get(name)?.shape.clone())
    }
}
