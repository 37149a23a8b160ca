//! One GPU, and what its operations are made of.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, sys};
use half::bf16;
use parking_lot::Mutex;

use super::error::CudaError;
use super::kernels::{Kernels, attention_shared_bytes};
use super::launch::launch;
use super::layout::{CudaLayout, Tiles};
use super::matrices::{CudaMatrix, CudaProjection, CudaWeight, Rotation};
use super::memory::{DeviceBuffer, Memory};
use super::products::{Destination, Products, Weight};
use crate::checkpoint::{CheckpointError, DecoderConfig, DecoderPart};
use crate::layer::AttentionShape;
use crate::ops::batch::{Packing, RotaryTables};
use crate::ops::device::{DeviceOps, Result};

/// What is computed of what families have beyond Llama.
const KNOWN_PARTS: [DecoderPart; 4] = [
    DecoderPart::SlidingWindow,
    DecoderPart::SoftCap,
    DecoderPart::ScoreScale,
    DecoderPart::OwnTensorLayout,
];

/// One GPU.
pub struct CudaOps {
    pub(super) stream: Arc<CudaStream>,
    pub(super) memory: Arc<Memory>,
    pub(super) kernels: Kernels,
    pub(super) products: Products,
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

    pub(super) fn matrix<T>(&self, rows: usize, columns: usize) -> Result<CudaMatrix<T>> {
        let values = self.memory.take(self.products.padded(rows) * columns)?;
        Ok(CudaMatrix { rows, columns, values })
    }

    pub(super) fn product<T>(
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
    pub(super) fn rotate(
        &self,
        x: &CudaMatrix<f32>,
        layout: &CudaLayout,
        sine: &DeviceBuffer<f32>,
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
    pub(super) fn embed_rows(
        &self,
        table: u64,
        columns: usize,
        ids: &[u32],
    ) -> Result<CudaMatrix<f32>> {
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
    pub(super) fn swiglu(&self, gate_up: &CudaMatrix<bf16>) -> Result<CudaMatrix<bf16>> {
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
    pub(super) fn rotation(
        &self,
        packing: &Packing,
        shape: &AttentionShape,
    ) -> Result<Arc<Rotation>> {
        let host = self.rotary.get(packing.length(), shape);
        let mut known = self.rotation.lock();
        Ok(match known.as_ref().filter(|known| Arc::ptr_eq(&known.host, &host)) {
            Some(rotation) => rotation.clone(),
            None => {
                let (cosine, sine) =
                    (self.memory.upload(&host.cosine)?, self.memory.upload(&host.sine)?);
                known.insert(Arc::new(Rotation { host, cosine, sine })).clone()
            }
        })
    }

    /// Attention of the queries that `tiles` name, `rows` of them.
    pub(super) fn attend(
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

impl DeviceOps for CudaOps {
    type Matrix = CudaMatrix<f32>;
    type Operand = CudaMatrix<bf16>;
    type Scale = DeviceBuffer<f32>;

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

    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<CudaMatrix<f32>> {
        let matrix = self.matrix(values.len() / columns, columns)?;
        self.memory.write(matrix.values.address(), &values)?;
        Ok(matrix)
    }

    fn read(&self, x: &CudaMatrix<f32>) -> Result<Vec<f32>> {
        Ok(self.memory.read(&x.values, x.rows * x.columns)?)
    }
}
