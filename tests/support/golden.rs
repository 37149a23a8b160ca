//! Golden values, and how far computed values are from them.

use std::path::{Path, PathBuf};

use inform::model::Score;
use safetensors::SafeTensors;

/// A file or folder under `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A model of the golden values that has no tokenizer, with one, in a new folder. It has 280 tokens.
pub(crate) fn with_tokenizer(model: &Path, folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let copy = |from: &Path, file: &str| std::fs::copy(from.join(file), folder.join(file)).unwrap();
    for file in ["config.json", "model.safetensors"] {
        copy(model, file);
    }
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        copy(&golden("tiny/linear"), file);
    }
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

    pub(crate) fn u32(&self, name: &str) -> Vec<u32> {
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

/// The bits of a reward, its latent, and whatever else the score has.
pub(crate) fn bits(score: &Score) -> Vec<u32> {
    score.values().map(f32::to_bits).collect()
}

/// `|found - expected| / |expected|`, of vectors.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference =
        squares(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - f64::from(*e)));
    (difference / squares(&mut expected.iter().map(|e| f64::from(*e)))).sqrt()
}

/// Signed sums of a sketch.
const SUMS: usize = 32;

fn splitmix(i: u64) -> u64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The norm, then sums over all entries with random signs: vectors whose sums agree agree in every entry (Johnson
/// and Lindenstrauss 1984). `tests/golden/gradients.py` has the same.
pub(crate) fn sketch(gradient: &[f32]) -> Vec<f64> {
    let mut sums = vec![0f64; 1 + SUMS];
    for (i, &value) in gradient.iter().enumerate() {
        let value = f64::from(value);
        sums[0] += value * value;
        let signs = splitmix(i as u64);
        for (bit, sum) in sums[1..].iter_mut().enumerate() {
            *sum += if signs >> bit & 1 == 1 { value } else { -value };
        }
    }
    sums[0] = sums[0].sqrt();
    sums
}

/// The relative error of a vector, estimated from its sketch: a signed sum's expected square is
/// the squared norm.
pub(crate) fn sketch_error(found: &[f64], expected: &[f64]) -> f64 {
    let sums = found[1..].iter().zip(&expected[1..]);
    let sums = (sums.map(|(f, e)| (f - e).powi(2)).sum::<f64>() / SUMS as f64).sqrt();
    sums.max((found[0] - expected[0]).abs()) / expected[0]
}
