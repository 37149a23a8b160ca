//! What a forward pass leaves for the way back: values, and steps that turn gradients of results into those of inputs.

use std::fmt;
use std::sync::Arc;

use half::bf16;

use super::gpu::Gpu;
use crate::ops::cuda::matrices::CudaMatrix;
use crate::ops::device::{OpsError, Result};

/// A matrix of a forward pass.
#[derive(Debug)]
pub struct Value<T> {
    pub(super) matrix: Arc<CudaMatrix<T>>,
    /// Where its gradient goes; `None` where nothing that is trained comes before it, or nothing is recorded.
    pub(super) place: Option<usize>,
}

/// Values that several steps read.
pub type SharedValue<T> = Arc<Value<T>>;

/// Gradient of a value, in the precision that its maker gives.
#[derive(Debug)]
pub(super) enum Gradient {
    F32(CudaMatrix<f32>),
    Bf16(CudaMatrix<bf16>),
}

/// The gradient of each place, as far as the way back has come.
#[derive(Debug)]
pub(super) struct TapeGradients(Vec<Option<Gradient>>);

impl TapeGradients {
    /// The gradient of a place, which no later step adds to.
    pub(super) fn take(&mut self, place: Option<usize>) -> Option<Gradient> {
        self.0[place?].take()
    }

    /// The same, of a place whose gradient is f32.
    ///
    /// # Errors
    /// One that attention gave in bf16: no step but a product's reads that.
    pub(super) fn take_f32(&mut self, place: usize) -> Result<Option<CudaMatrix<f32>>> {
        match self.take(Some(place)) {
            None => Ok(None),
            Some(Gradient::F32(gradient)) => Ok(Some(gradient)),
            Some(Gradient::Bf16(_)) => {
                Err(OpsError::Missing("the gradient of what attention reads"))
            }
        }
    }

    /// A gradient that is whole, of a place that has none.
    pub(super) fn put(&mut self, place: usize, gradient: Gradient) {
        debug_assert!(self.0[place].is_none(), "a gradient is lost");
        self.0[place] = Some(gradient);
    }

    /// The f32 matrix that holds a place's gradient, and whether there is something in it to add to. To be put back.
    pub(super) fn sum(
        &mut self,
        gpu: &Gpu,
        place: usize,
        (rows, columns): (usize, usize),
    ) -> Result<(CudaMatrix<f32>, bool)> {
        Ok(match self.take_f32(place)? {
            Some(sum) => (sum, true),
            None => (gpu.ops.matrix(rows, columns)?, false),
        })
    }
}

/// A step back.
type Step = Box<dyn FnOnce(&Gpu, &mut TapeGradients) -> Result<()>>;

/// The steps of a forward pass, in its order.
#[derive(Default)]
pub(super) struct Tape {
    steps: Vec<Step>,
    places: usize,
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tape({} steps)", self.steps.len())
    }
}

impl Tape {
    pub(super) fn place(&mut self) -> usize {
        self.places += 1;
        self.places - 1
    }

    pub(super) fn push(
        &mut self,
        step: impl FnOnce(&Gpu, &mut TapeGradients) -> Result<()> + 'static,
    ) {
        self.steps.push(Box::new(step));
    }

    /// Goes back from the gradient of one place to that of another, `None` where nothing leads there.
    pub(super) fn backward(
        self,
        gpu: &Gpu,
        from: usize,
        gradient: CudaMatrix<f32>,
        to: Option<usize>,
    ) -> Result<Option<CudaMatrix<f32>>> {
        let mut gradients = TapeGradients((0..self.places).map(|_| None).collect());
        gradients.put(from, Gradient::F32(gradient));
        for step in self.steps.into_iter().rev() {
            step(gpu, &mut gradients)?;
        }
        to.map_or(Ok(None), |to| gradients.take_f32(to))
    }
}
