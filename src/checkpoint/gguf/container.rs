//! The GGUF container: metadata by key, and where each tensor's bytes are. Versions 2 and 3, little-endian.
//!
//! Layout: magic, version, the numbers of tensors and of metadata entries, the entries, the tensors' descriptions,
//! and, after padding to `general.alignment`, their bytes (ggml's `docs/gguf.md`).
//!
//! Every length is checked against the file before anything is allocated for it.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::blocks::BlockType;
use crate::checkpoint::files::{CheckpointError, shortest};

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Lists within lists; the format has no limit, and no writer goes beyond one.
const MAX_DEPTH: usize = 4;

/// A tensor as the header describes it.
#[derive(Debug, Clone)]
pub(in crate::checkpoint) struct TensorInfo {
    pub(in crate::checkpoint) name: String,
    pub(in crate::checkpoint) kind: BlockType,
    /// Rows first, as everywhere but in GGUF.
    pub(in crate::checkpoint) shape: Vec<usize>,
    /// Where the bytes are in the file.
    pub(in crate::checkpoint) range: (usize, usize),
}

/// An opened file.
#[derive(Debug)]
pub(in crate::checkpoint) struct Container {
    pub(in crate::checkpoint) file: PathBuf,
    pub(in crate::checkpoint) map: Mmap,
    /// Numbers are exact, but for 32-bit floats, which are the shortest decimals that read back as they were.
    pub(in crate::checkpoint) metadata: Map<String, Value>,
    pub(in crate::checkpoint) tensors: Vec<TensorInfo>,
}

impl Container {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// A file that is missing, is none of these, or ends too early; a tensor of an unknown type. The message
    /// names the metadata key or the tensor.
    pub(in crate::checkpoint) fn open(file: &Path) -> Result<Self, CheckpointError> {
        let opened = File::open(file).map_err(CheckpointError::io(file))?;
        // SAFETY: the mapping is read-only; a checkpoint that another process rewrites in place
        // while it is served is outside what a server can defend against.
        let map = unsafe { Mmap::map(&opened) }.map_err(CheckpointError::io(file))?;
        let damaged =
            |message: String| CheckpointError::DamagedGguf { file: file.to_owned(), message };
        let mut reader = Reader { bytes: &map, at: 0 };
        let (tensor_count, entry_count) = preamble(&mut reader).map_err(damaged)?;

        let mut metadata = Map::new();
        for _ in 0..entry_count {
            let before = metadata.keys().next_back();
            let place = before.map_or("the first metadata key".to_owned(), |key: &String| {
                format!("the metadata key after `{key}`")
            });
            let key = reader.text().map_err(|error| damaged(format!("{place}: {error}")))?;
            let value = reader
                .number::<4>()
                .and_then(|kind| reader.value(u32::from_le_bytes(kind), 0))
                .map_err(|error| damaged(format!("metadata `{key}`: {error}")))?;
            metadata.insert(key, value);
        }

        let mut tensors: Vec<TensorInfo> = Vec::new();
        for _ in 0..tensor_count {
            let place = tensors.last().map_or("the first tensor".to_owned(), |tensor| {
                format!("the tensor after `{}`", tensor.name)
            });
            let name = reader.text().map_err(|error| damaged(format!("{place}: {error}")))?;
            if name.is_empty() {
                return Err(damaged(format!("{place} has no name")));
            }
            tensors.push(tensor(&mut reader, &name, file)?);
        }

        let alignment = match metadata.get(ALIGNMENT_KEY) {
            None => DEFAULT_ALIGNMENT,
            // The bytes are read as blocks that begin with 16-bit numbers.
            Some(value) => {
                value.as_u64().filter(|n| n.is_power_of_two() && *n >= 8).ok_or_else(|| {
                    CheckpointError::Config {
                        file: file.to_owned(),
                        key: ALIGNMENT_KEY.to_owned(),
                        message: format!("found {value}, expected a power of two from 8 on"),
                    }
                })?
            }
        };
        let data = (reader.at as u64).next_multiple_of(alignment);
        for tensor in &mut tensors {
            place_bytes(tensor, data, alignment, map.len())
                .map_err(|error| damaged(format!("tensor `{}`: {error}", tensor.name)))?;
        }
        Ok(Self { file: file.to_owned(), map, metadata, tensors })
    }
}

/// Checks magic and version, and reads the numbers of tensors and of metadata entries.
fn preamble(reader: &mut Reader<'_>) -> Result<(u64, u64), String> {
    let magic = reader.number::<4>()?;
    if &magic != MAGIC {
        return Err(format!("it begins with {magic:02x?} instead of \"GGUF\""));
    }
    match u32::from_le_bytes(reader.number()?) {
        2 | 3 => {}
        1 => return Err("version 1 has been out of use since 2023: convert the model again".into()),
        version if (1..=3).contains(&version.swap_bytes()) => {
            return Err("it is big-endian: convert it with gguf_convert_endian".into());
        }
        version => return Err(format!("version {version}, this build reads 2 and 3")),
    }
    Ok((reader.u64()?, reader.u64()?))
}

/// Reads a tensor's description; where its bytes are is still counted from the first tensor's.
fn tensor(reader: &mut Reader<'_>, name: &str, file: &Path) -> Result<TensorInfo, CheckpointError> {
    let mut describe = || {
        let dimensions = u32::from_le_bytes(reader.number()?);
        if dimensions > 8 {
            return Err(format!("{dimensions} dimensions"));
        }
        let mut shape = (0..dimensions).map(|_| reader.size()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok((shape, u32::from_le_bytes(reader.number()?), reader.size()?))
    };
    let (shape, kind, offset) = describe().map_err(|error| CheckpointError::DamagedGguf {
        file: file.to_owned(),
        message: format!("tensor `{name}`: {error}"),
    })?;
    let kind = BlockType::from_id(kind).map_err(|found| CheckpointError::WrongType {
        file: file.to_owned(),
        tensor: name.to_owned(),
        found,
        expected: BlockType::names(),
    })?;
    Ok(TensorInfo { name: name.to_owned(), kind, shape, range: (offset, offset) })
}

/// Sets the tensor's range in the file.
fn place_bytes(
    tensor: &mut TensorInfo,
    data: u64,
    alignment: u64,
    length: usize,
) -> Result<(), String> {
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let (elements, bytes) = (tensor.kind.elements(), tensor.kind.bytes());
    if !columns.is_multiple_of(elements) {
        return Err(format!("{columns} columns are no whole blocks of {elements}"));
    }
    let offset = tensor.range.0 as u64;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("its offset {offset} is no multiple of {alignment}"));
    }
    let ends = || {
        let count = tensor.shape.iter().try_fold(1usize, |count, n| count.checked_mul(*n))?;
        let start = usize::try_from(data.checked_add(offset)?).ok()?;
        Some((start, start.checked_add((count / elements).checked_mul(bytes)?)?))
    };
    let (start, end) = ends().ok_or("it is larger than any file")?;
    if end > length {
        return Err(format!("it ends at byte {end}, and the file at byte {length}"));
    }
    tensor.range = (start, end);
    Ok(())
}

/// Reads numbers and texts off the front.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest
            .get(..length)
            .ok_or_else(|| format!("{length} bytes are announced, {} are left", rest.len()))?;
        self.at += length;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut number = [0; N];
        number.copy_from_slice(self.take(N)?);
        Ok(number)
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn size(&mut self) -> Result<usize, String> {
        usize::try_from(self.u64()?).map_err(|error| error.to_string())
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.size()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|error| format!("not UTF-8: {error}"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.number()?).into(),
            1 => i8::from_le_bytes(self.number()?).into(),
            2 => u16::from_le_bytes(self.number()?).into(),
            3 => i16::from_le_bytes(self.number()?).into(),
            4 => u32::from_le_bytes(self.number()?).into(),
            5 => i32::from_le_bytes(self.number()?).into(),
            6 => shortest(f32::from_le_bytes(self.number()?)),
            7 => (self.number::<1>()? != [0]).into(),
            8 => self.text()?.into(),
            9 if depth < MAX_DEPTH => {
                let kind = u32::from_le_bytes(self.number()?);
                // Every element has at least a byte: a length beyond the file ends at the file's end.
                let length = self.u64()?;
                let elements = (0..length).map(|_| self.value(kind, depth + 1));
                Value::Array(elements.collect::<Result<_, _>>()?)
            }
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.number()?).into(),
            12 => f64::from_le_bytes(self.number()?).into(),
            9 => return Err("lists in lists in lists".to_owned()),
            kind => return Err(format!("unknown type {kind} of a value")),
        })
    }
}
