//! How families name and lay out their tensors: reading them as Llama's, and storing Llama's as theirs.

use std::ops::Range;

use super::{Family, gemma2, gpt_neox, phi3};
use crate::checkpoint::{
    CheckpointError, DecoderConfig, MemoryTensors, TensorSource, TensorValues,
};

/// Where a family keeps a tensor of Llama's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The family's tensor.
    pub(crate) name: String,
    /// Which of its rows, where it holds other tensors of Llama's, too.
    pub(super) rows: Option<FusedRows>,
}

/// Rows of a tensor that holds several of Llama's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FusedRows {
    /// Rows of the whole.
    pub(super) count: usize,
    /// Those of one, in their order.
    pub(super) ranges: Vec<Range<usize>>,
}

impl Place {
    /// A tensor of its own.
    pub(super) fn whole(name: &str) -> Self {
        Self { name: name.to_owned(), rows: None }
    }

    /// How many rows the family's tensor has, and which of them a tensor of `count` rows takes, in their order.
    pub(crate) fn rows_of(&self, count: usize) -> (usize, Vec<usize>) {
        match &self.rows {
            None => (count, (0..count).collect()),
            Some(rows) => (rows.count, rows.ranges.iter().cloned().flatten().collect()),
        }
    }

    /// Shape of the family's tensor, for Llama's `shape`.
    fn shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut whole = shape.to_vec();
        if let Some(rows) = &self.rows {
            whole[0] = rows.count;
        }
        whole
    }
}

/// A checkpoint's tensors under Llama's names, as `model/` asks for them.
pub struct DecoderTensors<'a> {
    source: &'a dyn TensorSource,
    decoder: &'a DecoderConfig,
}

impl DecoderConfig {
    /// The decoder's tensors in `source`, under Llama's names.
    pub fn tensors<'a>(&'a self, source: &'a dyn TensorSource) -> DecoderTensors<'a> {
        DecoderTensors { source, decoder: self }
    }

    /// Puts a tensor with Llama's name, with the values that [`TensorSource::stored`] gives of it, where the family keeps it:
    /// under a name of its own, or into rows of a tensor that holds several, of which the others stay as they are. A tensor
    /// that is not the decoder's keeps its name.
    pub fn store(
        &self,
        tensors: &mut MemoryTensors,
        name: &str,
        shape: &[usize],
        values: Vec<f32>,
    ) {
        let place = self.place(name);
        match &place.rows {
            None => tensors.insert(&place.name, shape, values),
            Some(rows) => {
                tensors.insert_rows(&place.name, &place.shape(shape), &rows.ranges, &values);
            }
        }
    }

    /// Where the family keeps a tensor with Llama's name.
    pub(crate) fn place(&self, name: &str) -> Place {
        match self.architecture.family {
            // The head's.
            _ if !name.starts_with("model.") => Place::whole(name),
            Family::GptNeoX => gpt_neox::place(self, name),
            Family::Phi3 => phi3::place(self, name),
            _ => Place::whole(name),
        }
    }

    /// What is added to a stored tensor before it is used.
    fn offset(&self, name: &str) -> f32 {
        match self.architecture.family {
            Family::Gemma2 | Family::Gemma3 => gemma2::offset(name),
            _ => 0.0,
        }
    }
}

impl DecoderTensors<'_> {
    /// As they are stored.
    fn read(&self, name: &str, shape: &[usize]) -> Result<TensorValues, CheckpointError> {
        let place = self.decoder.place(name);
        let values = self.source.values(&place.name, &place.shape(shape))?;
        Ok(match &place.rows {
            None => values,
            Some(fused) => rows(values, shape[1..].iter().product(), &fused.ranges),
        })
    }
}

impl TensorSource for DecoderTensors<'_> {
    fn values(&self, name: &str, shape: &[usize]) -> Result<TensorValues, CheckpointError> {
        let values = self.read(name, shape)?;
        let offset = self.decoder.offset(name);
        if offset == 0.0 {
            return Ok(values);
        }
        let mut values: Vec<f32> = values.into();
        values.iter_mut().for_each(|value| *value += offset);
        Ok(TensorValues::F32(values))
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<(Vec<f32>, f32), CheckpointError> {
        Ok((self.read(name, shape)?.into(), self.decoder.offset(name)))
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }
}

/// The given ranges of a tensor's rows, one below the other.
fn rows(values: TensorValues, columns: usize, ranges: &[Range<usize>]) -> TensorValues {
    fn pick<T: Copy>(values: &[T], columns: usize, ranges: &[Range<usize>]) -> Vec<T> {
        let parts = ranges.iter().map(|rows| &values[rows.start * columns..rows.end * columns]);
        parts.flatten().copied().collect()
    }
    match values {
        TensorValues::F32(values) => TensorValues::F32(pick(&values, columns, ranges)),
        TensorValues::F16(values) => TensorValues::F16(pick(&values, columns, ranges)),
        TensorValues::Bf16(values) => TensorValues::Bf16(pick(&values, columns, ranges)),
    }
}
