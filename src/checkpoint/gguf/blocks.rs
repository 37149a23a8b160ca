//! GGUF's tensor types, and their values as floats.

use std::mem::size_of;

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
    BlockQ8_0, GgmlType,
};

/// A tensor type: floats, or blocks of small integers that share a scale. The numbers are ggml's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types, clippy::upper_case_acronyms)]
#[repr(u32)]
pub(in crate::checkpoint) enum BlockType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    BF16 = 30,
}

const KNOWN: [BlockType; 13] = {
    use BlockType::*;
    [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K]
};

impl BlockType {
    /// The type that ggml gives this number, or how to call the one that this build does not read.
    pub(in crate::checkpoint) fn from_id(id: u32) -> Result<Self, String> {
        KNOWN.into_iter().find(|kind| *kind as u32 == id).ok_or_else(|| match id {
            9 | 15 => "an intermediate type of ggml's".to_owned(),
            16..=23 | 29 => format!("IQ (number {id})"),
            24..=28 => format!("an integer or F64 (number {id})"),
            _ => format!("number {id}"),
        })
    }

    /// The name in GGUF's files and tools.
    pub(in crate::checkpoint) fn name(self) -> String {
        format!("{self:?}")
    }

    /// All names, for an error.
    pub(in crate::checkpoint) fn names() -> String {
        KNOWN.map(Self::name).join(", ")
    }

    /// Elements of a block.
    pub(in crate::checkpoint) fn elements(self) -> usize {
        use BlockType::*;
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 => BlockQ4_0::BLCK_SIZE,
            Q4_1 => BlockQ4_1::BLCK_SIZE,
            Q5_0 => BlockQ5_0::BLCK_SIZE,
            Q5_1 => BlockQ5_1::BLCK_SIZE,
            Q8_0 => BlockQ8_0::BLCK_SIZE,
            Q2_K => BlockQ2K::BLCK_SIZE,
            Q3_K => BlockQ3K::BLCK_SIZE,
            Q4_K => BlockQ4K::BLCK_SIZE,
            Q5_K => BlockQ5K::BLCK_SIZE,
            Q6_K => BlockQ6K::BLCK_SIZE,
        }
    }

    /// Bytes of a block.
    pub(in crate::checkpoint) fn bytes(self) -> usize {
        use BlockType::*;
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 => size_of::<BlockQ4_0>(),
            Q4_1 => size_of::<BlockQ4_1>(),
            Q5_0 => size_of::<BlockQ5_0>(),
            Q5_1 => size_of::<BlockQ5_1>(),
            Q8_0 => size_of::<BlockQ8_0>(),
            Q2_K => size_of::<BlockQ2K>(),
            Q3_K => size_of::<BlockQ3K>(),
            Q4_K => size_of::<BlockQ4K>(),
            Q5_K => size_of::<BlockQ5K>(),
            Q6_K => size_of::<BlockQ6K>(),
        }
    }

    /// The values of quantised blocks. `bytes` are whole blocks and lie at a multiple of 2; plain floats
    /// give nothing.
    pub(in crate::checkpoint) fn dequantise(self, bytes: &[u8]) -> Vec<f32> {
        use BlockType::*;
        match self {
            F32 | F16 | BF16 => Vec::new(),
            Q4_0 => values::<BlockQ4_0>(bytes),
            Q4_1 => values::<BlockQ4_1>(bytes),
            Q5_0 => values::<BlockQ5_0>(bytes),
            Q5_1 => values::<BlockQ5_1>(bytes),
            Q8_0 => values::<BlockQ8_0>(bytes),
            Q2_K => values::<BlockQ2K>(bytes),
            Q3_K => values::<BlockQ3K>(bytes),
            Q4_K => values::<BlockQ4K>(bytes),
            Q5_K => values::<BlockQ5K>(bytes),
            Q6_K => values::<BlockQ6K>(bytes),
        }
    }
}

fn values<B: GgmlType>(bytes: &[u8]) -> Vec<f32> {
    // SAFETY: candle's blocks are `repr(C)` of integers and halves, without padding: any bytes are one.
    let (before, blocks, after) = unsafe { bytes.align_to::<B>() };
    debug_assert!(before.is_empty() && after.is_empty());
    let mut values = vec![0.0; blocks.len() * B::BLCK_SIZE];
    B::to_float(blocks, &mut values);
    values
}
