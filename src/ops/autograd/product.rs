//! Linear layers with their gradients.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::values;
use crate::ops::cpu::{CpuOps, Factor, Precision, product};

/// `y = a b^T`, of factors that may lie transposed in memory.
#[derive(Clone)]
pub(super) struct Product {
    pub(super) cpu: Arc<CpuOps>,
    pub(super) precision: Precision,
    /// `a` is `[k, m]` in memory.
    pub(super) a_transposed: bool,
    /// `b` is `[k, n]` in memory.
    pub(super) b_transposed: bool,
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
        Ok((CpuStorage::F32(out), Shape::from((m, n))))
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
