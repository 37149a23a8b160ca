//! Loss and gradients of a batch, with its activations kept, or computed again layer by layer.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Storage, Tensor, Var};

use super::loss::Loss;
use crate::model::{HeadOutput, RewardModel};
use crate::ops::autograd::{AutogradOps, Parameter};
use crate::ops::{OpsError, Packing};

/// The gradient of every parameter, summed over what was added.
#[derive(Debug)]
pub struct Gradients {
    parameters: Vec<Parameter>,
    sums: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Nothing yet, of these parameters.
    pub fn new(parameters: Vec<Parameter>) -> Self {
        Self { sums: vec![None; parameters.len()], parameters }
    }

    /// Takes what a backward pass found.
    ///
    /// # Errors
    /// A failing tensor operation.
    pub fn add(&mut self, found: &mut GradStore) -> candle_core::Result<()> {
        for (parameter, sum) in self.parameters.iter().zip(&mut self.sums) {
            let Some(gradient) = found.remove(parameter.var.as_tensor()) else { continue };
            *sum = Some(match sum.take() {
                None => gradient,
                Some(sum) => (sum + gradient)?,
            });
        }
        Ok(())
    }

    /// The sum of each parameter, in their order; `None` where nothing was found.
    pub fn sums(&self) -> &[Option<Tensor>] {
        &self.sums
    }
}

/// Runs a model on a batch and adds the gradients of its loss.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The model.
    pub model: &'a RewardModel<AutogradOps>,
    /// The batch.
    pub packing: &'a Packing,
    /// What enters the first of the model's layers, `[rows, hidden]`, where something else computed it.
    pub entering: Option<&'a Tensor>,
    /// Draws of the latents, `[sequences * d]`; `None` takes their means.
    pub noise: Option<&'a [f32]>,
    /// Keep only what enters each layer, and compute the rest of it again on the way back (Chen et al. 2016,
    /// "Training deep nets with sublinear memory cost"): the same gradients, for a third more time.
    pub recompute: bool,
}

impl Backward<'_> {
    /// Adds to `gradients`; `loss` is of the head's output, in the order of the sequences, and its `total` is what is
    /// differentiated.
    ///
    /// # Errors
    /// A failing operation, or what `loss` returns.
    pub fn run(
        &self,
        loss: impl FnOnce(&HeadOutput<AutogradOps>) -> anyhow::Result<Loss>,
        gradients: &mut Gradients,
    ) -> anyhow::Result<(HeadOutput<AutogradOps>, Loss)> {
        if self.recompute {
            return self.layer_by_layer(loss, gradients);
        }
        let Self { model, packing, noise, .. } = *self;
        let output = model.head_forward(&model.pooled_from(packing, self.enter()?)?, noise)?;
        let loss = loss(&output)?;
        gradients.add(&mut loss.total.backward()?)?;
        Ok((detached(output), loss))
    }

    fn enter(&self) -> Result<Tensor, OpsError> {
        let Self { model, packing, entering, .. } = *self;
        entering.map_or_else(|| model.decoder().embed(model.ops(), packing), |x| Ok(x.clone()))
    }

    fn layer_by_layer(
        &self,
        loss: impl FnOnce(&HeadOutput<AutogradOps>) -> anyhow::Result<Loss>,
        gradients: &mut Gradients,
    ) -> anyhow::Result<(HeadOutput<AutogradOps>, Loss)> {
        let Self { model, packing, noise, .. } = *self;
        let (ops, decoder) = (model.ops(), model.decoder());
        let layout = decoder.layout(ops, packing)?;
        let layers = decoder.layers();
        let last = layers.end - 1;
        let mut entered = ops.without_recording(|| {
            let mut entered = vec![self.enter()?];
            for index in layers.start..last {
                entered.push(decoder.layer(ops, index, &entered[entered.len() - 1], &layout)?);
            }
            Ok::<_, OpsError>(entered)
        })?;

        // The last layer with the head; then each layer before it, of the gradient of what follows.
        let x = leaf(entered.pop())?;
        let (advanced, projection) =
            decoder.next_projection(ops, last, x.as_tensor().clone(), None, &layout)?;
        let pooled = decoder.last_layer(ops, &advanced, &projection, &layout, packing)?;
        let output = model.head_forward(&pooled, noise)?;
        let loss = loss(&output)?;
        let mut found = loss.total.backward()?;
        let output = detached(output);
        gradients.add(&mut found)?;
        let mut gradient = found.remove(x.as_tensor());
        for index in (layers.start..last).rev() {
            let x = leaf(entered.pop())?;
            let Some(known) = gradient else { break };
            let y = decoder.layer(ops, index, x.as_tensor(), &layout)?;
            let mut found = ops.seed(&y, known)?.backward()?;
            gradients.add(&mut found)?;
            gradient = found.remove(x.as_tensor());
        }
        if let (None, Some(known)) = (self.entering, gradient) {
            let x = self.enter()?;
            // A frozen table has no gradient.
            if x.track_op() {
                gradients.add(&mut ops.seed(&x, known)?.backward()?)?;
            }
        }
        Ok((output, loss))
    }
}

/// Where a backward pass ends.
fn leaf(x: Option<Tensor>) -> anyhow::Result<Var> {
    let x = x.ok_or_else(|| anyhow::anyhow!("a layer that nothing enters"))?;
    Ok(Var::from_tensor(&x)?)
}

/// Its values without what they were computed from.
fn detached(output: HeadOutput<AutogradOps>) -> HeadOutput<AutogradOps> {
    HeadOutput {
        reward: output.reward.detach(),
        posterior: output.posterior.map(|posterior| posterior.detach()),
    }
}

/// Shows a contiguous f32 tensor's values where they lie.
pub(in crate::train) fn with_values<T>(
    tensor: &Tensor,
    see: impl FnOnce(&[f32]) -> T,
) -> candle_core::Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let bounds = layout.contiguous_offsets();
    match (&*storage, bounds) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(see(&values[start..end])),
        _ => {
            drop(storage);
            let copy = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(see(&copy))
        }
    }
}
