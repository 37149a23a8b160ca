//! Linear layers with their gradients.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::host::{host, values};
use crate::ops::cpu::{CpuOps, Factor, Precision, add, product};

/// Rows that a task adds a bias to.
const BIASED_ROWS: usize = 64;

/// `y = a b^T`, of factors that may lie transposed in memory, or `y = a b^T + bias`, row by row.
#[derive(Clone)]
pub(super) struct Product {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) precision: Precision,
    /// `a` is `[k, m]` in memory.
    pub(super) a_transposed: bool,
    /// `b` is `[k, n]` in memory.
    pub(super) b_transposed: bool,
}

impl Product {
    /// `a b^T`, and its rows and columns.
    fn compute(
        &self,
        (a, a_layout): (&CpuStorage, &Layout),
        (b, b_layout): (&CpuStorage, &Layout),
    ) -> Result<(Vec<f32>, (usize, usize))> {
        let factor = |storage, layout: &Layout, is_transposed| -> Result<Factor<'_>> {
            let (rows, columns) = layout.shape().dims2()?;
            let values = values(storage, layout)?;
            Ok(match is_transposed {
                false => Factor::new(values, rows, columns),
                true => Factor::transposed(values, columns, rows),
            })
        };
        let a = factor(a, a_layout, self.a_transposed)?;
        let b = factor(b, b_layout, self.b_transposed)?;
        let (m, n) = (a.outer(), b.outer());
        let mut out = vec![0f32; m * n];
        product(&self.cpu, self.precision, a, b, &mut out);
        Ok((out, (m, n)))
    }

    /// Sums over the rows of a matrix.
    fn column_sums(&self, matrix: &Tensor) -> Result<Vec<f32>> {
        let (rows, columns) = matrix.dims2()?;
        let values = host(matrix)?;
        let sum = |rows: &[f32]| {
            let mut sum = vec![0f32; columns];
            rows.chunks_exact(columns).for_each(|row| add(self.cpu.isa(), &mut sum, row));
            sum
        };
        let blocks = self
            .cpu
            .of_row_blocks(rows, |rows| sum(&values[rows.start * columns..rows.end * columns]));
        Ok(sum(&blocks.concat()))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, shape) = self.compute((a, a_layout), (b, b_layout))?;
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }

    /// `da = dy b` and `db = dy^T a`, of factors that lie as they are.
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        assert!(!self.a_transposed && !self.b_transposed, "gradients are taken of x W^T only");
        let gradient = gradient.contiguous()?;
        let of = |a_transposed| Self { a_transposed, b_transposed: true, ..self.clone() };
        // What is frozen, or what comes before the first trained layer, needs none.
        let a_gradient =
            a.track_op().then(|| gradient.apply_op2_no_bwd(b, &of(false))).transpose()?;
        let b_gradient = b
            .track_op()
            .then(|| gradient.apply_op2_no_bwd(&a.contiguous()?, &of(true)))
            .transpose()?;
        Ok((a_gradient, b_gradient))
    }
}

impl CustomOp3 for Product {
    fn name(&self) -> &'static str {
        "biased-product"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut out, shape) = self.compute((a, a_layout), (b, b_layout))?;
        let bias = values(bias, bias_layout)?;
        let add_to = |rows: &mut [f32]| {
            rows.chunks_exact_mut(bias.len()).for_each(|row| add(self.cpu.isa(), row, bias));
        };
        self.cpu.install(|| out.par_chunks_mut(BIASED_ROWS * bias.len()).for_each(add_to));
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        bias: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (a_gradient, b_gradient) = CustomOp2::bwd(self, a, b, result, gradient)?;
        let bias_gradient = bias
            .track_op()
            .then(|| Tensor::from_vec(self.column_sums(gradient)?, bias.shape(), &Device::Cpu))
            .transpose()?;
        Ok((a_gradient, b_gradient, bias_gradient))
    }
}
