//! Products by cuBLAS, whose bits do not depend on the batch.
//!
//! cuBLAS chooses its kernel by the shape of a call, and kernels may add in different orders. So no call has the
//! batch's shape: a product is cut into pieces of a few numbers of rows, the last one padded, and only numbers of
//! rows are used together that were seen to give every row the same bits. That is measured with the weight itself
//! when a shape is first multiplied, over random rows at every place of a piece.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
};
use cudarc::cublas::{CudaBlas, result};
use cudarc::driver::CudaStream;
use half::bf16;
use parking_lot::Mutex;

use super::error::CudaError;
use super::memory::Memory;

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Destination {
    /// It is written, f32.
    F32,
    /// It is written, rounded to bf16.
    Bf16,
    /// It is added to what is there, f32.
    Added,
}

impl Destination {
    fn bytes(self) -> usize {
        if self == Self::Bf16 { 2 } else { 4 }
    }

    fn data_type(self) -> cudaDataType_t {
        match self {
            Self::Bf16 => cudaDataType_t::CUDA_R_16BF,
            Self::F32 | Self::Added => cudaDataType_t::CUDA_R_32F,
        }
    }
}

/// Part of a row-major matrix, whole rows or some of their columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) address: u64,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

/// A factor of a product, bf16: a block, or its transpose.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProductFactor {
    block: Block,
    is_transposed: bool,
}

impl Block {
    pub(super) fn plain(self) -> ProductFactor {
        ProductFactor { block: self, is_transposed: false }
    }

    pub(super) fn transposed(self) -> ProductFactor {
        ProductFactor { block: self, is_transposed: true }
    }
}

impl ProductFactor {
    fn shape(&self) -> (usize, usize) {
        let Block { rows, columns, .. } = self.block;
        if self.is_transposed { (columns, rows) } else { (rows, columns) }
    }

    fn operation(&self) -> cublasOperation_t {
        match self.is_transposed {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        }
    }
}

/// A weight `[outputs, columns]`, bf16, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    pub(super) address: u64,
    pub(super) outputs: usize,
    pub(super) columns: usize,
}

/// Numbers of rows, ascending, that give the same bits for one shape of weight.
type Pieces = Arc<[usize]>;

/// cuBLAS on one device.
pub(super) struct Products {
    blas: CudaBlas,
    stream: Arc<CudaStream>,
    memory: Arc<Memory>,
    /// Numbers of rows to choose from, ascending.
    pieces: Vec<usize>,
    agreeing: Mutex<HashMap<(usize, usize, Destination), Pieces>>,
}

impl Products {
    /// `pieces` must not be empty.
    pub(super) fn new(
        stream: Arc<CudaStream>,
        memory: Arc<Memory>,
        pieces: &[usize],
    ) -> Result<Self, CudaError> {
        let blas = CudaBlas::new(stream.clone())?;
        let mut pieces = pieces.to_vec();
        pieces.sort_unstable();
        pieces.dedup();
        Ok(Self { blas, stream, memory, pieces, agreeing: Mutex::default() })
    }

    /// Rows for which a matrix of `rows` rows must have room: pieces write past its end.
    pub(super) fn padded(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.largest())
    }

    fn largest(&self) -> usize {
        self.pieces.last().copied().unwrap_or(1)
    }

    /// `x W^T` of `rows` rows into `out`; both have room for [`Products::padded`] rows.
    pub(super) fn multiply(
        &self,
        x: u64,
        weight: Weight,
        out: u64,
        into: Destination,
        rows: usize,
    ) -> Result<(), CudaError> {
        let pieces = self.agreeing(weight, into)?;
        let mut done = 0;
        while done < rows {
            let piece = next_piece(&pieces, rows - done);
            self.call(x, weight, out, into, done, piece)?;
            done += piece;
        }
        Ok(())
    }

    /// One call of cuBLAS, for `count` rows from `first` on.
    fn call(
        &self,
        x: u64,
        weight: Weight,
        out: u64,
        into: Destination,
        first: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        let Weight { address, outputs, columns } = weight;
        let block = |address, rows, columns| Block { address, rows, columns, stride: columns };
        let x = block(x + (first * columns * size_of::<bf16>()) as u64, count, columns);
        let out = block(out + (first * outputs * into.bytes()) as u64, count, outputs);
        self.product(x.plain(), block(address, outputs, columns).transposed(), out, into)
    }

    /// `out = a b`, or `out += a b` where the destination says so, in one call: what training multiplies by, whose gradients are
    /// sums over a batch anyway, and scoring a piece at a time. The same call gives the same bits.
    pub(super) fn product(
        &self,
        a: ProductFactor,
        b: ProductFactor,
        out: Block,
        into: Destination,
    ) -> Result<(), CudaError> {
        let (rows, depth) = a.shape();
        let (of_b, columns) = b.shape();
        debug_assert_eq!(depth, of_b);
        let (one, zero) = (1f32, 0f32);
        let kept = if into == Destination::Added { &one } else { &zero };
        let context = self.stream.context();
        context.bind_to_thread().map_err(CudaError::driver("the GPU"))?;
        // cuBLAS counts by columns: what is row-major here is transposed there, so `out^T = b^T a^T`.
        // SAFETY: the addresses hold matrices of these shapes; the factors are read before the call returns.
        unsafe {
            result::gemm_ex(
                *self.blas.handle(),
                b.operation(),
                a.operation(),
                columns as i32,
                rows as i32,
                depth as i32,
                (&raw const one).cast(),
                b.block.address as *const _,
                cudaDataType_t::CUDA_R_16BF,
                b.block.stride as i32,
                a.block.address as *const _,
                cudaDataType_t::CUDA_R_16BF,
                a.block.stride as i32,
                std::ptr::from_ref(kept).cast(),
                out.address as *mut _,
                into.data_type(),
                out.stride as i32,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }?;
        Ok(())
    }

    /// The numbers of rows that agree for a shape: of those that give the same bits the most, and among as many
    /// the larger ones.
    fn agreeing(&self, weight: Weight, into: Destination) -> Result<Pieces, CudaError> {
        let key = (weight.outputs, weight.columns, into);
        if let Some(pieces) = self.agreeing.lock().get(&key) {
            return Ok(pieces.clone());
        }
        let rows = self.largest();
        let x = random(rows * weight.columns, 1).map(bf16::from_f32);
        let x = self.memory.upload(&x.collect::<Vec<_>>())?;
        let before: Vec<f32> = random(rows * weight.outputs, 2).collect();
        let out = self.memory.take::<u8>(rows * weight.outputs * into.bytes())?;
        let mut groups: Vec<(u64, Vec<usize>)> = Vec::new();
        for &piece in &self.pieces {
            if into == Destination::Added {
                self.memory.write(out.address(), &before)?;
            }
            let whole = rows / piece;
            for index in 0..whole {
                self.call(x.address(), weight, out.address(), into, index * piece, piece)?;
            }
            let mut hasher = DefaultHasher::new();
            let bytes = whole * piece * weight.outputs * into.bytes();
            // Where pieces do not divide the largest, what is left over is not compared.
            let compared = self.pieces.iter().map(|piece| rows / piece * piece).min();
            let compared = compared.unwrap_or(rows) * weight.outputs * into.bytes();
            self.memory.read(&out, bytes)?[..compared.min(bytes)].hash(&mut hasher);
            let hash = hasher.finish();
            match groups.iter_mut().find(|(known, _)| *known == hash) {
                Some((_, group)) => group.push(piece),
                None => groups.push((hash, vec![piece])),
            }
        }
        let best = groups.into_iter().map(|(_, group)| group);
        let best = best.max_by_key(|group| (group.len(), group.last().copied()));
        let pieces: Pieces = best.unwrap_or_default().into();
        if pieces.len() < self.pieces.len() {
            tracing::info!(
                outputs = weight.outputs,
                columns = weight.columns,
                used = ?pieces,
                of = ?self.pieces,
                "cuBLAS adds in another order for other numbers of rows: only some are used"
            );
        }
        self.agreeing.lock().insert(key, pieces.clone());
        Ok(pieces)
    }
}

/// The rows of the next call where `left` are left: those of the smallest piece that holds them, unless half of
/// it would be padding.
fn next_piece(pieces: &[usize], left: usize) -> usize {
    let holding = pieces.iter().copied().find(|&piece| piece >= left);
    let within = pieces.iter().copied().rfind(|&piece| piece <= left);
    match (holding, within) {
        (Some(holding), Some(within)) if holding > 2 * left => within,
        (Some(holding), _) => holding,
        (None, within) => within.unwrap_or(left),
    }
}

/// Numbers between -1 and 1 of all significands.
fn random(count: usize, seed: u64) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |index| {
        // SplitMix64 (Steele et al. 2014).
        let mut z = (index + (seed << 40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}

#[cfg(test)]
mod tests {
    use super::next_piece;

    fn cut(pieces: &[usize], mut rows: usize) -> Vec<usize> {
        let mut cut = Vec::new();
        while rows > 0 {
            cut.push(next_piece(pieces, rows));
            rows = rows.saturating_sub(cut[cut.len() - 1]);
        }
        cut
    }

    #[test]
    fn pieces_cover_the_rows_with_little_padding() {
        let pieces = [128, 512, 2048];
        assert_eq!(cut(&pieces, 1), [128]);
        assert_eq!(cut(&pieces, 200), [128, 128]);
        assert_eq!(cut(&pieces, 256), [512]);
        assert_eq!(cut(&pieces, 1000), [512, 512]);
        assert_eq!(cut(&pieces, 1024), [2048]);
        assert_eq!(cut(&pieces, 5000), [2048, 2048, 512, 512]);
        assert_eq!(cut(&[512], 5), [512]);
        assert_eq!(cut(&[512], 1025), [512, 512, 512]);
        // Never beyond the room that a matrix has.
        for rows in 1..9000 {
            for pieces in [&pieces[..], &pieces[1..], &pieces[..2], &pieces[2..]] {
                assert!(cut(pieces, rows).iter().sum::<usize>() <= rows.next_multiple_of(2048));
            }
        }
    }
}
