//! Reward heads on the CPU.

use super::device::CpuOps;
use super::kernels::elementwise::swiglu;
use super::linear::PackedWeight;
use super::matrix::Matrix;
use super::norm::Norm;
use super::operand::{Operand, Precision, Values};
use super::weights::packed;
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::ops::device::{DecoderOps, HeadOps, Result};

impl HeadOps for CpuOps {
    type HeadWeight = PackedWeight;

    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<PackedWeight, CheckpointError> {
        packed(Precision::F32, source, parts, columns)
    }

    fn head_norm(&self, x: &Matrix, norm: &Norm, epsilon: f32) -> Result<Matrix> {
        let mut out = Matrix::stale(x.rows, x.columns);
        norm.apply(self.isa, &x.values, epsilon, &mut out.values);
        Ok(out)
    }

    fn head_linear(&self, x: &Matrix, weight: &PackedWeight) -> Result<Matrix> {
        let values = Values::F32(x.values.clone());
        self.linear(&Operand { rows: x.rows, columns: x.columns, values }, weight)
    }

    fn head_swiglu(&self, gate_up: Matrix) -> Result<Matrix> {
        let columns = gate_up.columns / 2;
        let mut out = Matrix::stale(gate_up.rows, columns);
        swiglu(self.isa, &gate_up.values, columns, &mut out.values);
        Ok(out)
    }

    fn columns(&self, x: &Matrix, start: usize, count: usize) -> Result<Matrix> {
        let mut out = Matrix::stale(x.rows, count);
        for (row, out) in out.values.chunks_exact_mut(count).enumerate() {
            out.copy_from_slice(&x.row(row)[start..start + count]);
        }
        Ok(out)
    }

    fn reparameterise(&self, posterior: &Matrix, noise: &[f32]) -> Result<Matrix> {
        let dimension = posterior.columns / 2;
        let mut out = Matrix::stale(posterior.rows, dimension);
        for (row, (out, noise)) in
            out.values.chunks_exact_mut(dimension).zip(noise.chunks_exact(dimension)).enumerate()
        {
            let (mu, logvar) = posterior.row(row).split_at(dimension);
            for (((out, noise), mu), logvar) in out.iter_mut().zip(noise).zip(mu).zip(logvar) {
                *out = mu + (logvar / 2.0).exp() * noise;
            }
        }
        Ok(out)
    }
}
