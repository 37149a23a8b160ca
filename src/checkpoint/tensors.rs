//! Tensors by name: in memory-mapped files, or made in memory.
//!
//! Formats: safetensors (an 8-byte little-endian header length, a JSON header, then the bytes), whose
//! shards are listed in `model.safetensors.index.json` under `weight_map`; and GGUF.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::gguf::{BlockType, Container};
use super::{CheckpointError, CheckpointSource, Family, read_json};

pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// A tensor's values, row-major, in the type that it is stored in.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorValues {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// Brain floats.
    Bf16(Vec<bf16>),
}

impl TensorValues {
    pub(super) fn is_finite(&self) -> bool {
        match self {
            Self::F32(values) => values.iter().all(|value| value.is_finite()),
            Self::F16(values) => values.iter().all(|value| value.is_finite()),
            Self::Bf16(values) => values.iter().all(|value| value.is_finite()),
        }
    }
}

impl From<TensorValues> for Vec<f32> {
    /// Exact: f32 holds every value of the others.
    fn from(values: TensorValues) -> Self {
        match values {
            TensorValues::F32(values) => values,
            TensorValues::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            TensorValues::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
        }
    }
}

impl TensorValues {
    /// From rows as GGUF has them, in which the two rows of a rotary pair stand next to each other, to rows as
    /// Hugging Face has them: in each head first all pairs' first rows, then their second.
    fn with_halves_apart(self, rows: usize, heads: usize) -> Self {
        fn apart<T: Copy>(values: &[T], rows: usize, heads: usize) -> Vec<T> {
            let (columns, head_dim) = (values.len() / rows.max(1), rows / heads);
            (0..rows)
                .flat_map(|row| {
                    let (head, row) = (row / head_dim, row % head_dim);
                    let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
                    &values[(head * head_dim + 2 * pair + half) * columns..][..columns]
                })
                .copied()
                .collect()
        }
        match self {
            Self::F32(values) => Self::F32(apart(&values, rows, heads)),
            Self::F16(values) => Self::F16(apart(&values, rows, heads)),
            Self::Bf16(values) => Self::Bf16(apart(&values, rows, heads)),
        }
    }
}

/// Where a model's tensors come from.
pub trait TensorSource {
    /// The values of a tensor.
    ///
    /// # Errors
    /// Where there is no such tensor, or its shape or type is another.
    fn values(&self, name: &str, shape: &[usize]) -> Result<TensorValues, CheckpointError>;

    /// The shape of a tensor of the checkpoint's own, by its name there; `None` where there is none.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// [`TensorSource::values`] as f32.
    ///
    /// # Errors
    /// As [`TensorSource::values`].
    fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        Ok(self.values(name, shape)?.into())
    }

    /// [`TensorSource::f32`] of a tensor as it is stored, for a training that changes what is stored, and what is added to
    /// each value before it is used: 0, but where a family stores the scales of norms less 1.
    ///
    /// # Errors
    /// As [`TensorSource::values`].
    fn stored(&self, name: &str, shape: &[usize]) -> Result<(Vec<f32>, f32), CheckpointError> {
        Ok((self.f32(name, shape)?, 0.0))
    }

    /// The named tensors, each `[rows, columns]`, one below the other.
    ///
    /// # Errors
    /// As [`TensorSource::values`].
    fn stacked(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Vec<f32>, CheckpointError> {
        let mut values = Vec::with_capacity(parts.iter().map(|p| p.1).sum::<usize>() * columns);
        for &(name, rows) in parts {
            values.extend(self.f32(name, &[rows, columns])?);
        }
        Ok(values)
    }
}

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

/// How a file has a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// As Hugging Face has them.
    AsItIs,
    /// As GGUF has rotary pairs, in each of so many heads.
    Pairs {
        /// Heads that the rows are, at least one.
        heads: usize,
    },
    /// One more than Hugging Face has them: scales of norms.
    OneMore,
}

/// A tensor inside a mapped file.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    dtype: StoredType,
    shape: Vec<usize>,
    range: (usize, usize),
    stored: Stored,
}

/// The tensors of a folder's safetensors files, or of a GGUF file, memory-mapped.
#[derive(Debug)]
pub struct FolderTensors {
    files: Vec<(PathBuf, Mmap)>,
    entries: BTreeMap<String, Entry>,
    /// The file that an error about a missing tensor names.
    listing: PathBuf,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index names, each once.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let Index { weight_map } = read_json(index)?;
    Ok(weight_map.into_values().collect())
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

    pub(super) fn of_folder(folder: &Path) -> Result<Self, CheckpointError> {
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
            let entry = Entry {
                file: self.files.len(),
                dtype: StoredType::Safetensors(info.dtype),
                shape: info.shape.clone(),
                range: (data + start, data + end),
                stored: Stored::AsItIs,
            };
            self.entries.insert(name, entry);
        }
        self.files.push((path.to_owned(), map));
        Ok(())
    }

    /// The tensors of a GGUF file. `place` says what a tensor is called here, and how the file has it.
    pub(super) fn of_gguf(
        container: Container,
        mut place: impl FnMut(&str) -> (String, Stored),
    ) -> Self {
        let entries = container.tensors.into_iter().map(|info| {
            let (name, stored) = place(&info.name);
            let dtype = StoredType::Gguf(info.kind);
            (name, Entry { file: 0, dtype, shape: info.shape, range: info.range, stored })
        });
        Self {
            entries: entries.collect(),
            listing: container.file.clone(),
            files: vec![(container.file, container.map)],
        }
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

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file].1[entry.range.0..entry.range.1]
    }

    /// Takes what was read of the file out of this process's memory; the next read maps it again.
    fn release(&self, entry: &Entry) {
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
        let values = match entry.stored {
            Stored::AsItIs => values,
            Stored::Pairs { heads } => values.with_halves_apart(shape[0], heads),
            Stored::OneMore => TensorValues::F32(
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

/// Tensors made in memory: freshly initialised or trained weights.
#[derive(Debug, Clone, Default)]
pub struct MemoryTensors {
    entries: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl MemoryTensors {
    /// Adds or replaces a tensor; `values` are row-major and as many as the shape holds.
    pub fn insert(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        debug_assert_eq!(values.len(), shape.iter().product::<usize>());
        self.entries.insert(name.to_owned(), (shape.to_vec(), values));
    }

    /// Puts `values` into these rows of a tensor, of zeros where there is none of this name and shape yet.
    pub(super) fn insert_rows(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: &[Range<usize>],
        values: &[f32],
    ) {
        let columns: usize = shape[1..].iter().product();
        let entry = self.entries.entry(name.to_owned()).or_default();
        if entry.0 != shape {
            *entry = (shape.to_vec(), vec![0.0; shape[0] * columns]);
        }
        let mut rest = values;
        for rows in rows {
            let part = rest.split_off(..rows.len() * columns).unwrap_or_default();
            entry.1[rows.start * columns..][..part.len()].copy_from_slice(part);
        }
    }

    /// Name, shape and values of every tensor, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        self.entries
            .iter()
            .map(|(name, (shape, values))| (name.as_str(), shape.as_slice(), values.as_slice()))
    }
}

impl TensorSource for MemoryTensors {
    fn values(&self, name: &str, shape: &[usize]) -> Result<TensorValues, CheckpointError> {
        let memory = PathBuf::from("(in memory)");
        match self.entries.get(name) {
            None => Err(CheckpointError::MissingTensor {
                file: memory,
                tensor: name.to_owned(),
                expected: shape.to_vec(),
            }),
            Some((found, _)) if found != shape => Err(CheckpointError::WrongShape {
                file: memory,
                tensor: name.to_owned(),
                found: found.clone(),
                expected: shape.to_vec(),
            }),
            Some((_, values)) => Ok(TensorValues::F32(values.clone())),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.entries.get(name)?.0.clone())
    }
}
