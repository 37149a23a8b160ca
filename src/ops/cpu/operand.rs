//! Activations as products read them, and what writes them.

use std::marker::PhantomData;

use super::isa::vectorised;
use super::linear::Shared;

/// Precision of products. Sums, norms, softmax and the residual stream are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// Inputs and weights rounded to 16-bit brain floats; needs AVX-512 BF16.
    Bf16,
}

impl Precision {
    /// The name that settings and logs use.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// Activations `[rows, columns]` in the precision that products read.
#[derive(Debug, Clone, PartialEq)]
pub struct Operand {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Values,
}

/// Elements of an [`Operand`], row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

/// Where tasks write an operand, each its own part. Borrows the operand.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Target<'a> {
    elements: Elements,
    length: usize,
    operand: PhantomData<&'a mut [f32]>,
}

#[derive(Clone, Copy)]
enum Elements {
    F32(Shared<f32>),
    Bf16(Shared<u16>),
}

impl Operand {
    pub(super) fn zeros(precision: Precision, rows: usize, columns: usize) -> Self {
        let values = match precision {
            Precision::F32 => Values::F32(vec![0.0; rows * columns]),
            Precision::Bf16 => Values::Bf16(vec![0; rows * columns]),
        };
        Self { rows, columns, values }
    }

    pub(super) fn target(&mut self) -> Target<'_> {
        match &mut self.values {
            Values::F32(values) => Target::of(values),
            Values::Bf16(values) => Target {
                elements: Elements::Bf16(Shared(values.as_mut_ptr())),
                length: values.len(),
                operand: PhantomData,
            },
        }
    }

    pub(super) fn gather(&self, rows: &[usize]) -> Self {
        fn copy<T: Copy>(values: &[T], columns: usize, rows: &[usize]) -> Vec<T> {
            rows.iter().flat_map(|row| &values[row * columns..][..columns]).copied().collect()
        }
        let values = match &self.values {
            Values::F32(values) => Values::F32(copy(values, self.columns, rows)),
            Values::Bf16(values) => Values::Bf16(copy(values, self.columns, rows)),
        };
        Self { rows: rows.len(), columns: self.columns, values }
    }
}

impl<'a> Target<'a> {
    /// A slice that is written in f32.
    pub(in crate::ops) fn of(values: &'a mut [f32]) -> Self {
        Self {
            elements: Elements::F32(Shared(values.as_mut_ptr())),
            length: values.len(),
            operand: PhantomData,
        }
    }

    /// Elements of the operand.
    pub(super) fn len(self) -> usize {
        self.length
    }

    /// Writes `values` from element `offset` on.
    ///
    /// # Safety
    /// `offset + values.len()` is at most [`Target::len`], and no other task writes or reads these
    /// elements.
    pub(super) unsafe fn write(self, isa: super::Isa, offset: usize, values: &[f32]) {
        // SAFETY: the caller's.
        unsafe {
            match self.elements {
                Elements::F32(target) => {
                    std::ptr::copy_nonoverlapping(values.as_ptr(), target.at(offset), values.len());
                }
                Elements::Bf16(target) => {
                    let out = std::slice::from_raw_parts_mut(target.at(offset), values.len());
                    round(isa, values, out);
                }
            }
        }
    }
}

vectorised! {
    /// Rounds to brain floats, to nearest even. NaN stays NaN.
    fn round(values: &[f32], out: &mut [u16]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = to_bf16(*value);
        }
    }
}

/// One value, rounded to nearest even.
#[inline(always)]
pub(super) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding a NaN could carry into the sign or give an infinity.
    let nan = (bits >> 16) | 0x40;
    (if value.is_nan() { nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::to_bf16;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        for step in 0..1_000_000u32 {
            let value = f32::from_bits(step.wrapping_mul(4_294_967_291));
            let (ours, theirs) = (to_bf16(value), half::bf16::from_f32(value));
            assert_eq!(ours, theirs.to_bits(), "{value}");
        }
        for value in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE] {
            assert_eq!(to_bf16(value), half::bf16::from_f32(value).to_bits(), "{value}");
        }
    }
}
