//! A decoder's layers, recorded for training.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Device, Tensor};

use super::attention::{AutogradLayout, SegmentQueries};
use super::device::AutogradOps;
use super::gelu::Activation;
use super::linear_weight::LinearWeight;
use super::norm::{LayerNorm, NormWeight};
use crate::layer::{AttentionShape, Gelu};
use crate::ops::batch::Packing;
use crate::ops::device::{DecoderOps, OpsError, QueryRows, Result, TrainingOps};

/// Queries, keys and values of a layer before their rotary embedding, and the layer's attention.
#[derive(Debug)]
pub struct AutogradProjection {
    values: Tensor,
    shape: AttentionShape,
}

impl TrainingOps for AutogradOps {
    fn attention(
        &self,
        projected: &Tensor,
        layout: &Arc<AutogradLayout>,
        shape: &AttentionShape,
    ) -> Result<Tensor> {
        Ok(projected.apply_op1(self.packed_attention(layout, shape))?)
    }
}

impl DecoderOps for AutogradOps {
    type Layout = Arc<AutogradLayout>;
    type Projection = AutogradProjection;

    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Arc<AutogradLayout>> {
        let segments = packing.segments().iter().enumerate().map(|(index, segment)| {
            let (rows, keys) = (segment.rows.clone(), packing.rows_through(index));
            SegmentQueries { rows, keys }
        });
        let lasts = (0..packing.sequences()).map(|sequence| {
            let (rows, keys) = (sequence..sequence + 1, packing.rows_of(sequence));
            SegmentQueries { rows, keys }
        });
        Ok(Arc::new(AutogradLayout {
            attention: self.cpu.layout(packing, shape)?,
            segments: segments.collect(),
            lasts: lasts.collect(),
        }))
    }

    fn embed(&self, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
        Ok(self.seen(table).index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?)
    }

    fn norm(&self, x: &Tensor, norm: &NormWeight, epsilon: f32) -> Result<Tensor> {
        let Some(bias) = &norm.bias else {
            return self.rms_norm(x, 0..x.dim(D::Minus1)?, norm, epsilon);
        };
        let operation = LayerNorm { cpu: self.cpu.clone(), epsilon };
        Ok(x.apply_op3(&self.norm_scale(norm)?, &self.seen(bias), operation)?)
    }

    fn norm_add(
        &self,
        x: &Tensor,
        norm: &NormWeight,
        epsilon: f32,
        residual: Tensor,
    ) -> Result<Tensor> {
        Ok((residual + self.norm(x, norm, epsilon)?)?)
    }

    fn head_norms(
        &self,
        x: Tensor,
        columns: Range<usize>,
        norm: &NormWeight,
        epsilon: f32,
    ) -> Result<Tensor> {
        match norm.bias {
            None => self.rms_norm(&x, columns, norm, epsilon),
            Some(_) => Err(OpsError::Missing("layer norms of heads")),
        }
    }

    fn scaled(&self, x: Tensor, factor: f32) -> Result<Tensor> {
        Ok((x * f64::from(factor))?)
    }

    fn linear(&self, x: &Tensor, weight: &LinearWeight) -> Result<Tensor> {
        let product = |x: &Tensor, weight: &Tensor, bias: Option<&Tensor>| {
            self.product(x, weight, bias, self.precision)
        };
        Ok(weight.apply(x, product)?)
    }

    fn linear_add(&self, x: &Tensor, weight: &LinearWeight, residual: Tensor) -> Result<Tensor> {
        Ok((residual + self.linear(x, weight)?)?)
    }

    fn gated_linear(&self, x: &Tensor, weight: &LinearWeight) -> Result<Tensor> {
        self.gated(&self.linear(x, weight)?, None)
    }

    fn gelu_gated_linear(&self, x: &Tensor, weight: &LinearWeight, gelu: Gelu) -> Result<Tensor> {
        self.gated(&self.linear(x, weight)?, Some(gelu))
    }

    fn gelu_linear(&self, x: &Tensor, weight: &LinearWeight, gelu: Gelu) -> Result<Tensor> {
        let operation = Activation { cpu: self.cpu.clone(), kind: gelu };
        Ok(self.linear(x, weight)?.apply_op1(operation)?)
    }

    fn next_projection(
        &self,
        x: Tensor,
        previous: Option<&AutogradProjection>,
        layout: &Arc<AutogradLayout>,
        shape: &AttentionShape,
        _: QueryRows,
        work: impl Fn(&Self, Option<Tensor>, Tensor) -> Result<(Tensor, Tensor)> + Sync,
    ) -> Result<(Tensor, AutogradProjection)> {
        let attended =
            previous.map(|previous| self.attention(&previous.values, layout, &previous.shape));
        let (x, values) = work(self, attended.transpose()?, x)?;
        Ok((x, AutogradProjection { values, shape: *shape }))
    }

    fn last_attention(
        &self,
        queries: Tensor,
        projection: &AutogradProjection,
        layout: &Arc<AutogradLayout>,
    ) -> Result<Tensor> {
        let operation = self.packed_attention(layout, &projection.shape);
        Ok(queries.apply_op2(&projection.values, operation)?)
    }

    fn gather(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        Ok(x.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
    }
}
