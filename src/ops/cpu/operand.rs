//! Activations as products read them, and what writes them.

use std::marker::PhantomData;

use super::buffers::Buffer;
use super::shared::Shared;

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
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
}

/// Where tasks write an operand, each its own part. Borrows the operand.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    elements: Elements,
    operand: PhantomData<&'a mut [f32]>,
}

#[derive(Clone, Copy)]
enum Elements {
    F32(Shared<f32>),
    Bf16(Shared<u16>),
}

impl Operand {
    /// An operand with arbitrary contents, for an operation that writes every element.
    pub(super) fn stale(precision: Precision, rows: usize, columns: usize) -> Self {
        let values = match precision {
            Precision::F32 => Values::F32(Buffer::stale(rows * columns)),
            Precision::Bf16 => Values::Bf16(Buffer::stale(rows * columns)),
        };
        Self { rows, columns, values }
    }

    /// The values of an f32 device's operand.
    pub(super) fn into_matrix(self) -> super::Matrix {
        let Self { rows, columns, values } = self;
        match values {
            Values::F32(values) => super::Matrix { rows, columns, values },
            Values::Bf16(_) => unreachable!("only training asks, and it is f32"),
        }
    }

    pub(super) fn target(&mut self) -> Target<'_> {
        let elements = match &mut self.values {
            Values::F32(values) => Elements::F32(Shared::new(values)),
            Values::Bf16(values) => Elements::Bf16(Shared::new(values)),
        };
        Target { elements, operand: PhantomData }
    }
}

impl Target<'_> {
    /// Writes `values` from element `offset` on.
    ///
    /// # Safety
    /// `offset + values.len()` is at most the operand's length, and no other task writes or reads these
    /// elements.
    pub(super) unsafe fn write(self, offset: usize, values: &[f32]) {
        // SAFETY: the caller's.
        unsafe {
            match self.elements {
                Elements::F32(target) => {
                    std::ptr::copy_nonoverlapping(values.as_ptr(), target.at(offset), values.len());
                }
                Elements::Bf16(target) => {
                    round(values, std::slice::from_raw_parts_mut(target.at(offset), values.len()));
                }
            }
        }
    }
}

/// Rounds to brain floats, to nearest even; subnormal numbers become zeros, as the dot product takes them.
/// Only a device of [`Precision::Bf16`] rounds, and there is none without the instruction.
#[cfg(target_arch = "x86_64")]
pub(super) fn round(values: &[f32], out: &mut [u16]) {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn vectors(values: &[f32], out: &mut [u16]) {
        for (values, out) in values.chunks(16).zip(out.chunks_mut(16)) {
            let mask = (1u32 << values.len()).wrapping_sub(1) as u16;
            // SAFETY: the mask covers `values`, and `out` is as long.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, values.as_ptr()));
                let rounded: __m256i = std::mem::transmute(rounded);
                _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, rounded);
            }
        }
    }
    assert_eq!(values.len(), out.len());
    // SAFETY: `CpuOps::new` refuses the precision where the instructions are missing.
    unsafe { vectors(values, out) }
}

/// No processor of another architecture has bf16 products here.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn round(_: &[f32], _: &mut [u16]) {
    unreachable!("CpuOps::new refuses the precision")
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::round;
    use crate::ops::cpu::isa;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        if !isa::has_bf16() {
            eprintln!("skipped: this processor has no AVX-512 BF16");
            return;
        }
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE];
        let random = (0..1_000_003u32).map(|i| f32::from_bits(i.wrapping_mul(4_294_967_291)));
        let values: Vec<f32> = special.into_iter().chain(random).collect();
        let mut rounded = vec![0u16; values.len()];
        round(&values, &mut rounded);
        for (value, rounded) in values.into_iter().zip(rounded) {
            let expected = if value.is_subnormal() { 0.0f32.copysign(value) } else { value };
            assert_eq!(rounded, half::bf16::from_f32(expected).to_bits(), "{value}");
        }
    }
}
