//! How families name and lay out their tensors: reading them as Llama's, and storing Llama's as theirs.

use std::ops::Range;

use super::place::TensorPlace;
use super::{gemma2, gpt_neox, phi3};
use crate::checkpoint::decoder::{DecoderConfig, Family};
use crate::checkpoint::files::CheckpointError;
use crate::checkpoint::tensors::{MemoryTensors, TensorSource, TensorValues};

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
    pub(crate) fn place(&self, name: &str) -> TensorPlace {
        match self.architecture.family {
            // The head's.
            _ if !name.starts_with("model.") => TensorPlace::whole(name),
            Family::GptNeoX => gpt_neox::place(self, name),
            Family::Phi3 => phi3::place(self, name),
            _ => TensorPlace::whole(name),
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
