//! The CUDA device: the kernels of `kernels/` and cuBLAS's products, all on one stream.
//!
//! Weights and what products read are bf16, sums and the residual stream f32, the head f32 throughout. The bits of a row
//! depend on its own sequence only: in the kernels by construction, in the products as `products.rs` says.
//! `docs/gpu.md` has what each step should cost.

mod error;
mod kernels;
mod launch;
mod layout;
mod matrices;
mod memory;
mod products;
pub mod training;

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, sys};
use half::bf16;
use parking_lot::Mutex;

use super::head::{Decode, InformHead, step_by_step};
use super::rotary::RotaryTables;
use super::{Ops, Packing, Result};
use crate::checkpoint::{CheckpointError, DecoderConfig, DecoderPart, TensorSource, TensorValues};
use crate::layer::AttentionShape;

pub use error::CudaError;
use kernels::{Kernels, attention_shared_bytes};
use launch::launch;
pub use layout::CudaLayout;
use layout::{Tables, Tiles};
use matrices::Rotation;
pub use matrices::{CudaHeadWeight, CudaMatrix, CudaProjection, CudaTable, CudaWeight};
pub use memory::Buffer;
use memory::Memory;
use products::{Destination, Products, Weight};

/// Dynamic shared memory that every kernel may use without asking, less what `inform_head.cu` holds anyway.
const MAX_HEAD_SHARED: usize = (48 << 10) - (12 << 10);

/// What is computed of what families have beyond Llama.
const KNOWN_PARTS: [DecoderPart; 4] = [
    DecoderPart::SlidingWindow,
    DecoderPart::SoftCap,
    DecoderPart::ScoreScale,
    DecoderPart::OwnTensorLayout,
];

/// One GPU.
pub struct CudaOps {
    stream: Arc<CudaStream>,
    memory: Arc<Memory>,
    kernels: Kernels,
    products: Products,
    rotary: RotaryTables,
    /// The tables that are on the device.
    rotation: Mutex<Option<Arc<Rotation>>>,
    name: String,
}

impl fmt::Debug for CudaOps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaOps({})", self.name)
    }
}

impl CudaOps {
    /// GPUs that the driver knows.
    ///
    /// # Errors
    /// Without a driver or cuBLAS, or where the driver does not work.
    pub fn count() -> std::result::Result<usize, CudaError> {
        // SAFETY: only looks whether the libraries open.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::MissingLibrary("libcuda (NVIDIA's driver)"));
        }
        // SAFETY: as above.
        if !unsafe { cudarc::cublas::sys::is_culib_present() } {
            return Err(CudaError::MissingLibrary("libcublas (of the CUDA toolkit)"));
        }
        let count = CudaContext::device_count().map_err(CudaError::driver("the driver"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Device `ordinal`, from 0. Products are cut into pieces of the given numbers of rows, at least one.
    ///
    /// # Errors
    /// Without such a device, or where it is too old or has no memory left.
    pub fn new(ordinal: usize, pieces: &[usize]) -> std::result::Result<Self, CudaError> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let failed = || CudaError::driver("opening the GPU");
        let context = CudaContext::new(ordinal).map_err(failed())?;
        let name = context.name().map_err(failed())?;
        let (major, minor) = context.compute_capability().map_err(failed())?;
        if major < 8 {
            return Err(CudaError::TooOld { name, major, minor });
        }
        // SAFETY: everything is on one stream, whose order is all that is needed.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed())?;
        let memory = Arc::new(Memory::new(stream.clone())?);
        let kernels = Kernels::load(&context, (10 * major + minor) as u32)?;
        let products = Products::new(stream.clone(), memory.clone(), pieces)?;
        let (rotary, rotation) = (RotaryTables::default(), Mutex::default());
        Ok(Self { stream, memory, kernels, products, rotary, rotation, name })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn matrix<T>(&self, rows: usize, columns: usize) -> Result<CudaMatrix<T>> {
        let values = self.memory.take(self.products.padded(rows) * columns)?;
        Ok(CudaMatrix { rows, columns, values })
    }

    fn upload_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<CudaWeight, CheckpointError> {
        let outputs = parts.iter().map(|(_, rows)| rows).sum();
        let values: Vec<bf16> =
            source.stacked(parts, columns)?.into_iter().map(bf16::from_f32).collect();
        Ok(CudaWeight { outputs, columns, values: self.memory.upload(&values)? })
    }

    fn product<T>(
        &self,
        x: &CudaMatrix<bf16>,
        weight: &CudaWeight,
        out: &CudaMatrix<T>,
        into: Destination,
    ) -> Result<()> {
        let CudaWeight { outputs, columns, ref values } = *weight;
        let weight = Weight { address: values.address(), outputs, columns };
        Ok(self.products.multiply(
            x.values.address(),
            weight,
            out.values.address(),
            into,
            x.rows,
        )?)
    }

    /// Rotary embedding of the first `rotated` heads of rows at the given positions, and rounding of all. `sine` is that of
    /// the layout, or its negative, which turns back.
    fn rotate(
        &self,
        x: &CudaMatrix<f32>,
        layout: &CudaLayout,
        sine: &Buffer<f32>,
        positions: u64,
        rotated: usize,
    ) -> Result<CudaMatrix<bf16>> {
        let out = self.matrix(x.rows, x.columns)?;
        let head_dim = layout.shape.head_dim;
        let plain = x.columns / head_dim - rotated;
        launch!(
            self,
            &self.kernels.rotary_embedding,
            (x.rows, 1),
            0,
            [
                out.values.address(),
                x.values.address(),
                layout.rotation.cosine.address(),
                sine.address(),
                positions,
                rotated as i32,
                plain as i32,
                head_dim as i32,
            ]
        )?;
        Ok(out)
    }

    /// Rows of the table `[any, columns]` at an address.
    fn embed_rows(&self, table: u64, columns: usize, ids: &[u32]) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(ids.len(), columns)?;
        let ids = self.memory.upload(ids)?;
        launch!(
            self,
            &self.kernels.embed_rows,
            (out.rows, 1),
            0,
            [out.values.address(), table, ids.address(), columns as i32]
        )?;
        Ok(out)
    }

    /// `silu(gate) * up` of `[gate | up]`.
    fn swiglu(&self, gate_up: &CudaMatrix<bf16>) -> Result<CudaMatrix<bf16>> {
        let inner = gate_up.columns / 2;
        let out = self.matrix(gate_up.rows, inner)?;
        launch!(
            self,
            &self.kernels.swiglu,
            (gate_up.rows, 1),
            0,
            [out.values.address(), gate_up.values.address(), inner as i32]
        )?;
        Ok(out)
    }

    /// The rotary tables of a batch on the device.
    fn rotation(&self, packing: &Packing, shape: &AttentionShape) -> Result<Arc<Rotation>> {
        let host = self.rotary.get(packing.length(), shape);
        let mut known = self.rotation.lock();
        Ok(match known.as_ref().filter(|known| Arc::ptr_eq(&known.host, &host)) {
            Some(rotation) => rotation.clone(),
            None => {
                let (cosine, sine) = host.tables();
                let (cosine, sine) = (self.memory.upload(cosine)?, self.memory.upload(sine)?);
                known.insert(Arc::new(Rotation { host, cosine, sine })).clone()
            }
        })
    }

    /// Attention of the queries that `tiles` name, `rows` of them.
    fn attend(
        &self,
        queries: &CudaMatrix<bf16>,
        keys: &CudaProjection,
        layout: &CudaLayout,
        tiles: Tiles,
    ) -> Result<CudaMatrix<bf16>> {
        let shape = &layout.shape;
        let columns = shape.output_columns();
        let out = self.matrix::<bf16>(queries.rows, columns)?;
        let key = keys.values.values.address() + 2 * keys.query_columns as u64;
        let value = key + (2 * shape.key_value_heads * shape.head_dim) as u64;
        let kernel = self.kernels.attention(shape.head_dim)?;
        let shared = attention_shared_bytes(shape.head_dim);
        launch!(
            self,
            kernel,
            (tiles.count, shape.key_value_heads),
            shared,
            [
                out.values.address(),
                queries.values.address(),
                key,
                value,
                tiles.address,
                layout.path_starts,
                layout.stretches,
                columns as i32,
                queries.columns as i32,
                keys.values.columns as i32,
                (shape.heads / shape.key_value_heads) as i32,
                shape.window.unwrap_or(0) as i32,
                shape.scale(),
                shape.soft_cap.unwrap_or(0.0),
            ]
        )?;
        Ok(out)
    }
}

impl Ops for CudaOps {
    type Matrix = CudaMatrix<f32>;
    type Operand = CudaMatrix<bf16>;
    type Weight = CudaWeight;
    type GatedWeight = CudaWeight;
    type HeadWeight = CudaHeadWeight;
    type Scale = Buffer<f32>;
    type Table = CudaTable;
    type Layout = CudaLayout;
    type Projection = CudaProjection;

    fn supports(&self, decoder: &DecoderConfig) -> std::result::Result<(), CheckpointError> {
        decoder.require(&KNOWN_PARTS, "a GPU")?;
        let shape = &decoder.attention;
        self.kernels.attention(shape.head_dim)?;
        let group = shape.heads / shape.key_value_heads.max(1);
        if group > 64 {
            let message = format!(
                "{group} query heads share a key head, the attention kernel knows up to 64"
            );
            return Err(CheckpointError::Unsupported(message));
        }
        Ok(())
    }

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<CudaWeight, CheckpointError> {
        self.upload_weight(source, parts, columns)
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<CudaWeight, CheckpointError> {
        self.upload_weight(source, &[(gate, rows), (up, rows)], columns)
    }

    fn head_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<CudaHeadWeight, CheckpointError> {
        let outputs = parts.iter().map(|(_, rows)| rows).sum();
        let values = source.stacked(parts, columns)?;
        let high: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
        let rest: Vec<bf16> =
            values.iter().zip(&high).map(|(v, high)| bf16::from_f32(v - high.to_f32())).collect();
        let is_exact = rest.iter().all(|rest| rest.to_f32() == 0.0);
        Ok(CudaHeadWeight {
            outputs,
            columns,
            values: self.memory.upload(&values)?,
            high: self.memory.upload(&high)?,
            rest: if is_exact { None } else { Some(self.memory.upload(&rest)?) },
        })
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Buffer<f32>, CheckpointError> {
        Ok(self.memory.upload(&source.f32(name, &[columns])?)?)
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<CudaTable, CheckpointError> {
        let values: Vec<bf16> = match source.values(name, &[rows, columns])? {
            TensorValues::Bf16(values) => values,
            values => Vec::<f32>::from(values).into_iter().map(bf16::from_f32).collect(),
        };
        Ok(CudaTable { columns, values: self.memory.upload(&values)? })
    }

    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<CudaLayout> {
        let tables = Tables::new(packing, shape);
        Ok(CudaLayout::new(&self.memory, &tables, shape, self.rotation(packing, shape)?)?)
    }

    fn embed(&self, table: &CudaTable, ids: &[u32]) -> Result<CudaMatrix<f32>> {
        self.embed_rows(table.values.address(), table.columns, ids)
    }

    fn norm(
        &self,
        x: &CudaMatrix<f32>,
        scale: &Buffer<f32>,
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

    fn advance(
        &self,
        x: CudaMatrix<f32>,
        previous: Option<&CudaProjection>,
        layout: &CudaLayout,
        shape: &AttentionShape,
        asks: bool,
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
        let query_heads = if asks { shape.heads } else { 0 };
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

    fn head_norm(
        &self,
        x: &CudaMatrix<f32>,
        scale: &Buffer<f32>,
        epsilon: f32,
    ) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(x.rows, x.columns)?;
        launch!(
            self,
            &self.kernels.rms_norm_f32,
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

    fn head_linear(&self, x: &CudaMatrix<f32>, weight: &CudaHeadWeight) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(x.rows, weight.outputs)?;
        launch!(
            self,
            &self.kernels.head_linear,
            (x.rows, weight.outputs.div_ceil(4)),
            0,
            [
                out.values.address(),
                x.values.address(),
                weight.values.address(),
                weight.outputs as i32,
                weight.columns as i32,
            ]
        )?;
        Ok(out)
    }

    fn head_swiglu(&self, gate_up: CudaMatrix<f32>) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(gate_up.rows, gate_up.columns / 2)?;
        launch!(
            self,
            &self.kernels.head_swiglu,
            (out.rows, 1),
            0,
            [out.values.address(), gate_up.values.address(), out.columns as i32,]
        )?;
        Ok(out)
    }

    fn columns(&self, x: &CudaMatrix<f32>, start: usize, count: usize) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(x.rows, count)?;
        launch!(
            self,
            &self.kernels.head_columns,
            (x.rows, 1),
            0,
            [
                out.values.address(),
                x.values.address(),
                start as i32,
                count as i32,
                x.columns as i32,
            ]
        )?;
        Ok(out)
    }

    fn reparameterise(
        &self,
        posterior: &CudaMatrix<f32>,
        noise: &[f32],
    ) -> Result<CudaMatrix<f32>> {
        let out = self.matrix(posterior.rows, posterior.columns / 2)?;
        let noise = self.memory.upload(noise)?;
        launch!(
            self,
            &self.kernels.head_reparameterise,
            (out.rows, 1),
            0,
            [out.values.address(), posterior.values.address(), noise.address(), out.columns as i32,]
        )?;
        Ok(out)
    }

    /// In one launch where the latents are means; a shape that the kernel does not know goes step by step.
    fn inform_head(
        &self,
        x: &CudaMatrix<f32>,
        (scale, epsilon): (&Buffer<f32>, f32),
        head: &InformHead<CudaHeadWeight>,
        noise: Option<&[f32]>,
    ) -> Result<(CudaMatrix<f32>, CudaMatrix<f32>)> {
        let InformHead { encode, decode, latent_dim } = head;
        let (decode, down, shared) = match decode {
            Decode::Linear(decode) => (decode, 0, 0),
            Decode::Gated { gate_up, down } => (gate_up, down.values.address(), 64 * latent_dim),
        };
        if noise.is_some() || !x.columns.is_multiple_of(8) || shared > MAX_HEAD_SHARED {
            return step_by_step(self, x, (scale, epsilon), head, noise);
        }
        let reward = self.matrix(x.rows, 1)?;
        let posterior = self.matrix(x.rows, 2 * latent_dim)?;
        let tiles = x.rows.div_ceil(16);
        let arrived = self.memory.upload(&vec![0u32; tiles])?;
        let slices = (2 * latent_dim).div_ceil(128);
        launch!(
            self,
            &self.kernels.inform_head_forward,
            (tiles, slices),
            shared,
            [
                reward.values.address(),
                posterior.values.address(),
                0u64,
                arrived.address(),
                x.values.address(),
                0u64,
                scale.address(),
                encode.high.address(),
                encode.rest.as_ref().map_or(0, Buffer::address),
                decode.values.address(),
                down,
                x.rows as i32,
                x.columns as i32,
                *latent_dim as i32,
                0i32,
                0i32,
                0u64,
                0u64,
                epsilon,
            ]
        )?;
        Ok((reward, posterior))
    }

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<CudaMatrix<f32>> {
        let matrix = self.matrix(values.len() / columns, columns)?;
        self.memory.write(matrix.values.address(), &values)?;
        Ok(matrix)
    }

    fn read(&self, x: &CudaMatrix<f32>) -> Result<Vec<f32>> {
        Ok(self.memory.read(&x.values, x.rows * x.columns)?)
    }
}
