//! A decoder's layers on a GPU.

use std::ops::Range;

use half::bf16;

use super::device::CudaOps;
use super::launch::launch;
use super::layout::{AttentionTables, CudaLayout};
use super::matrices::{CudaMatrix, CudaProjection, CudaTable, CudaWeight};
use super::memory::DeviceBuffer;
use super::products::Destination;
use crate::layer::{AttentionShape, Gelu};
use crate::ops::batch::Packing;
use crate::ops::device::{DecoderOps, OpsError, QueryRows, Result};

impl DecoderOps for CudaOps {
    type Layout = CudaLayout;
    type Projection = CudaProjection;

    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<CudaLayout> {
        let tables = AttentionTables::new(packing, shape);
        Ok(CudaLayout::new(&self.memory, &tables, shape, self.rotation(packing, shape)?)?)
    }

    fn embed(&self, table: &CudaTable, ids: &[u32]) -> Result<CudaMatrix<f32>> {
        self.embed_rows(table.values.address(), table.columns, ids)
    }

    fn norm(
        &self,
        x: &CudaMatrix<f32>,
        scale: &DeviceBuffer<f32>,
        epsilon: f32,
    ) -> Result<CudaMatrix<bf16>> {
        let out = self.matrix(x.rows, x.columns)?;
        launch!(
            self,
            &self.kernels.rms_norm,
            (x.rows.div_ceil(4), 1),
            0,
            [
                out.values.address(),
                x.values.address(),
                0u64,
                scale.address(),
                x.rows as i32,
                x.columns as i32,
                epsilon,
            ]
        )?;
        Ok(out)
    }

    /// Refused by `supports`.
    fn norm_add(
        &self,
        _: &CudaMatrix<f32>,
        _: &DeviceBuffer<f32>,
        _: f32,
        _: CudaMatrix<f32>,
    ) -> Result<CudaMatrix<f32>> {
        Err(OpsError::Missing("a norm before the residual"))
    }

    /// Refused by `supports`.
    fn head_norms(
        &self,
        _: CudaMatrix<f32>,
        _: Range<usize>,
        _: &DeviceBuffer<f32>,
        _: f32,
    ) -> Result<CudaMatrix<f32>> {
        Err(OpsError::Missing("norms of heads"))
    }

    /// Refused by `supports`.
    fn scaled(&self, _: CudaMatrix<f32>, _: f32) -> Result<CudaMatrix<f32>> {
        Err(OpsError::Missing("scaled embeddings"))
    }

    fn linear(&self, x: &CudaMatrix<bf16>, weight: &CudaWeight) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(x.rows, weight.outputs)?;
        self.product(x, weight, &out, Destination::F32)?;
        Ok(out)
    }

    fn linear_add(
        &self,
        x: &CudaMatrix<bf16>,
        weight: &CudaWeight,
        residual: CudaMatrix<f32>,
    ) -> Result<CudaMatrix<f32>> {
        self.product(x, weight, &residual, Destination::Added)?;
        Ok(residual)
    }

    fn gated_linear(&self, x: &CudaMatrix<bf16>, weight: &CudaWeight) -> Result<CudaMatrix<bf16>> {
        let gate_up = self.matrix::<bf16>(x.rows, weight.outputs)?;
        self.product(x, weight, &gate_up, Destination::Bf16)?;
        self.swiglu(&gate_up)
    }

    /// Refused by `supports`.
    fn gelu_gated_linear(
        &self,
        _: &CudaMatrix<bf16>,
        _: &CudaWeight,
        _: Gelu,
    ) -> Result<CudaMatrix<bf16>> {
        Err(OpsError::Missing("GeGLU"))
    }

    /// Refused by `supports`.
    fn gelu_linear(
        &self,
        _: &CudaMatrix<bf16>,
        _: &CudaWeight,
        _: Gelu,
    ) -> Result<CudaMatrix<bf16>> {
        Err(OpsError::Missing("GELU"))
    }

    fn next_projection(
        &self,
        x: CudaMatrix<f32>,
        previous: Option<&CudaProjection>,
        layout: &CudaLayout,
        shape: &AttentionShape,
        queries: QueryRows,
        work: impl Fn(
            &Self,
            Option<CudaMatrix<bf16>>,
            CudaMatrix<f32>,
        ) -> Result<(CudaMatrix<f32>, CudaMatrix<f32>)>
        + Sync,
    ) -> Result<(CudaMatrix<f32>, CudaProjection)> {
        let attended = previous
            .map(|previous| self.attend(&previous.values, previous, layout, layout.tiles))
            .transpose()?;
        let (x, projected) = work(self, attended, x)?;
        let query_heads = match queries {
            QueryRows::All => shape.heads,
            QueryRows::LastOfSequence => 0,
        };
        let rotated = query_heads + shape.key_value_heads;
        let values =
            self.rotate(&projected, layout, &layout.rotation.sine, layout.positions, rotated)?;
        Ok((x, CudaProjection { values, query_columns: query_heads * shape.head_dim }))
    }

    fn last_attention(
        &self,
        queries: CudaMatrix<f32>,
        projection: &CudaProjection,
        layout: &CudaLayout,
    ) -> Result<CudaMatrix<bf16>> {
        let heads = layout.shape.heads;
        let queries =
            self.rotate(&queries, layout, &layout.rotation.sine, layout.last_positions, heads)?;
        self.attend(&queries, projection, layout, layout.last_tiles)
    }

    fn gather(&self, x: &CudaMatrix<f32>, rows: &[usize]) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(rows.len(), x.columns)?;
        let index: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let index = self.memory.upload(&index)?;
        launch!(
            self,
            &self.kernels.gather_rows,
            (out.rows, 1),
            0,
            [out.values.address(), x.values.address(), index.address(), x.columns as i32,]
        )?;
        Ok(out)
    }
}
