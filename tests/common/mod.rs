//! Golden values, and how far computed values are from them.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use inform::model::Score;
use safetensors::SafeTensors;

/// A file or folder under `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A safetensors file of golden values.
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        Self(std::fs::read(golden(name)).unwrap())
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.numbers(name, f32::from_le_bytes)
    }

    pub(crate) fn f64(&self, name: &str) -> Vec<f64> {
        self.numbers(name, f64::from_le_bytes)
    }

    fn u32(&self, name: &str) -> Vec<u32> {
        self.numbers(name, u32::from_le_bytes)
    }

    /// The sequences whose ids lie end to end.
    pub(crate) fn sequences(&self) -> Vec<Vec<u32>> {
        let ids = self.u32("ids");
        let mut rest = ids.as_slice();
        let sequences = self
            .u32("lengths")
            .into_iter()
            .map(|length| rest.split_off(..length as usize).unwrap().to_vec())
            .collect();
        assert!(rest.is_empty());
        sequences
    }

    fn numbers<T, const N: usize>(&self, name: &str, read: fn([u8; N]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype().bitsize(), 8 * N, "{name}");
        tensor.data().chunks_exact(N).map(|bytes| read(bytes.try_into().unwrap())).collect()
    }
}

/// The bits of a reward and its latent.
pub(crate) fn bits(score: &Score) -> Vec<u32> {
    let latent = score.latent.iter().flat_map(|latent| latent.mean.iter().chain(&latent.sigma));
    std::iter::once(&score.reward).chain(latent).map(|value| value.to_bits()).collect()
}

/// `|found - expected| / |expected|`, of vectors.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference =
        squares(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e)));
    (difference / squares(&mut expected.iter().map(|e| f64::from(*e)))).sqrt()
}
