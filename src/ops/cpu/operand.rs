//! Activations as products read them, and what writes them.

use std::marker::PhantomData;

use super::buffers::Buffer;
use super::kernels::bf16;
use super::matrix::Matrix;
use super::shared_pointer::SharedPointer;

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
pub(super) struct OperandTarget<'a> {
    elements: Elements,
    operand: PhantomData<&'a mut [f32]>,
}

#[derive(Clone, Copy)]
enum Elements {
    F32(SharedPointer<f32>),
    Bf16(SharedPointer<u16>),
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
    pub(super) fn into_matrix(self) -> Matrix {
        let Self { rows, columns, values } = self;
        match values {
            Values::F32(values) => Matrix { rows, columns, values },
            Values::Bf16(_) => unreachable!("only training asks, and it is f32"),
        }
    }

    pub(super) fn target(&mut self) -> OperandTarget<'_> {
        let elements = match &mut self.values {
            Values::F32(values) => Elements::F32(SharedPointer::new(values)),
            Values::Bf16(values) => Elements::Bf16(SharedPointer::new(values)),
        };
        OperandTarget { elements, operand: PhantomData }
    }
}

impl OperandTarget<'_> {
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
                    let out = std::slice::from_raw_parts_mut(target.at(offset), values.len());
                    bf16::round(values, out);
                }
            }
        }
    }
}

impl OperandTarget<'_> {
    /// Element `offset` of a bf16 operand.
    ///
    /// # Safety
    /// `offset` is at most the operand's length.
    pub(super) unsafe fn bf16_at(self, offset: usize) -> Option<*mut u16> {
        match self.elements {
            // SAFETY: the caller's.
            Elements::Bf16(target) => Some(unsafe { target.at(offset) }),
            Elements::F32(_) => None,
        }
    }
}
