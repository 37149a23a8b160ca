//! AdamW with global-norm clipping.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::device_decoder::DeviceDecoder;
use super::gradients::{Gradients, with_values};
use crate::ops::autograd::Parameter;
use crate::ops::{AdamWStep, StateTensor};

/// Settings of AdamW (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimiserConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay of matrices; norms and biases have none.
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    pub clip_norm: f64,
}

impl Default for OptimiserConfig {
    fn default() -> Self {
        Self {
            learning_rate: 5e-6,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
        }
    }
}

impl OptimiserConfig {
    pub(in crate::train) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.learning_rate > 0.0, "optimiser.learning_rate: must be positive");
        anyhow::ensure!(self.clip_norm > 0.0, "optimiser.clip_norm: must be positive");
        anyhow::ensure!(self.epsilon > 0.0, "optimiser.epsilon: must be positive");
        anyhow::ensure!(self.weight_decay >= 0.0, "optimiser.weight_decay: must not be negative");
        // JSON, in which a checkpoint keeps its settings, has no infinity.
        for (key, value) in [
            ("learning_rate", self.learning_rate),
            ("clip_norm", self.clip_norm),
            ("epsilon", self.epsilon),
            ("weight_decay", self.weight_decay),
        ] {
            anyhow::ensure!(value.is_finite(), "optimiser.{key}: must be finite");
        }
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            anyhow::ensure!((0.0..1.0).contains(&value), "optimiser.{key}: must be in [0, 1)");
        }
        Ok(())
    }
}

/// Moments of every parameter, on the CPU and on the decoder's device, where it has one.
#[derive(Debug)]
pub struct AdamW {
    config: OptimiserConfig,
    parameters: Vec<(Parameter, Moments)>,
    device: Option<Rc<dyn DeviceDecoder>>,
    steps: i32,
}

#[derive(Debug)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// All that a later step depends on of one parameter.
#[derive(Debug)]
pub(in crate::train) struct ParameterState {
    pub(in crate::train) values: Vec<f32>,
    pub(in crate::train) first: Vec<f32>,
    pub(in crate::train) second: Vec<f32>,
}

impl AdamW {
    /// An optimiser that has taken no step.
    pub fn new(config: OptimiserConfig, parameters: Vec<Parameter>) -> Self {
        let parameters = parameters
            .into_iter()
            .map(|parameter| {
                let count = parameter.var.elem_count();
                let moments = Moments { first: vec![0.0; count], second: vec![0.0; count] };
                (parameter, moments)
            })
            .collect();
        Self { config, parameters, device: None, steps: 0 }
    }

    /// The same, which steps the parameters of a device besides.
    pub(in crate::train) fn with_device(self, device: Option<Rc<dyn DeviceDecoder>>) -> Self {
        Self { device, ..self }
    }

    /// Number of elements of each parameter: those on the CPU, then those on the device.
    pub(in crate::train) fn counts(&self) -> Vec<usize> {
        let host = self.parameters.iter().map(|(parameter, _)| parameter.var.elem_count());
        let device = self.device.iter().flat_map(|device| device.parameters());
        host.chain(device.map(|parts| parts.count())).collect()
    }

    /// Values of each parameter, in the order of [`AdamW::counts`].
    pub(in crate::train) fn values(&self) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut values = Vec::new();
        for (parameter, _) in &self.parameters {
            values.push(parameter.var.flatten_all()?.to_vec1()?);
        }
        for (device, index) in self.on_device() {
            values.push(device.read(index, StateTensor::Values)?);
        }
        Ok(values)
    }

    /// Puts values in the place of those that are there.
    pub(in crate::train) fn set_values(&self, values: Vec<Vec<f32>>) -> anyhow::Result<()> {
        let mut values = values.into_iter();
        for ((parameter, _), values) in self.parameters.iter().zip(&mut values) {
            let shape = parameter.var.shape();
            parameter.var.set(&Tensor::from_vec(values, shape, &Device::Cpu)?)?;
        }
        for ((device, index), values) in self.on_device().zip(values) {
            device.write(index, StateTensor::Values, &values)?;
        }
        Ok(())
    }

    /// Values and moments of each parameter.
    pub(in crate::train) fn state(&self) -> anyhow::Result<Vec<ParameterState>> {
        let mut states = Vec::new();
        for (parameter, Moments { first, second }) in &self.parameters {
            let values = parameter.var.flatten_all()?.to_vec1()?;
            states.push(ParameterState { values, first: first.clone(), second: second.clone() });
        }
        for (device, index) in self.on_device() {
            let read = |of| device.read(index, of);
            let (first, second) =
                (read(StateTensor::FirstMoment)?, read(StateTensor::SecondMoment)?);
            states.push(ParameterState { values: read(StateTensor::Values)?, first, second });
        }
        Ok(states)
    }

    /// Goes on after `steps` steps that left this.
    pub(in crate::train) fn restore(
        &mut self,
        steps: usize,
        states: Vec<ParameterState>,
    ) -> anyhow::Result<()> {
        self.steps = steps as i32;
        let (mut all_values, mut all_moments) = (Vec::new(), Vec::new());
        for ParameterState { values, first, second } in states {
            all_values.push(values);
            all_moments.push(Moments { first, second });
        }
        self.set_values(all_values)?;
        let mut moments = all_moments.into_iter();
        for ((_, own), found) in self.parameters.iter_mut().zip(&mut moments) {
            *own = found;
        }
        for ((device, index), Moments { first, second }) in self.on_device().zip(moments) {
            device.write(index, StateTensor::FirstMoment, &first)?;
            device.write(index, StateTensor::SecondMoment, &second)?;
        }
        Ok(())
    }

    /// The device once for each of its parameters, with the parameter's number.
    fn on_device(&self) -> impl Iterator<Item = (&dyn DeviceDecoder, usize)> {
        self.device.iter().flat_map(|device| {
            (0..device.parameters().len()).map(move |index| (device.as_ref(), index))
        })
    }

    /// Takes one step at `share` of the peak learning rate; returns the gradients' norm before
    /// clipping. Parameters on the CPU that have no gradient are left as they are.
    ///
    /// # Errors
    /// A gradient that is not finite: no parameter was changed then. A failing device or tensor operation.
    ///
    /// # Panics
    /// If the gradients are of other parameters.
    pub fn step(&mut self, gradients: &Gradients, share: f64) -> anyhow::Result<f64> {
        let gradients = gradients.sums();
        assert_eq!(gradients.len(), self.parameters.len(), "gradients of other parameters");
        let mut squares = 0.0;
        for gradient in gradients.iter().flatten() {
            squares += with_values(gradient, sum_of_squares)?;
        }
        if let Some(device) = &self.device {
            squares += device.gradient_squares()?;
        }
        let norm = squares.sqrt();
        anyhow::ensure!(norm.is_finite(), "the gradient is not finite");
        self.steps += 1;

        let config = &self.config;
        let rate = config.learning_rate * share;
        let step = AdamWStep {
            keep: (1.0 - rate * config.weight_decay) as f32,
            clip: (config.clip_norm / norm).min(1.0) as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            rate: (rate / (1.0 - config.beta1.powi(self.steps))) as f32,
            root_correction: (1.0 - config.beta2.powi(self.steps)).sqrt() as f32,
            epsilon: config.epsilon as f32,
        };
        if let Some(device) = &self.device {
            device.step(&step)?;
        }
        for ((parameter, moments), gradient) in self.parameters.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let keep = if parameter.decays { step.keep } else { 1.0 };
            let step = AdamWStep { keep, ..step };
            let update = Update { step, moments: RefCell::new(moments) };
            parameter.var.inplace_op2(&gradient.contiguous()?, &update)?;
        }
        Ok(norm)
    }
}

/// Values of one task.
const CHUNK: usize = 1 << 14;

/// In f64, in an order that the number of threads does not change.
fn sum_of_squares(values: &[f32]) -> f64 {
    let of = |chunk: &[f32]| chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(of).collect();
    sums.iter().sum()
}

/// A step of one parameter, in place: the first argument is its values, the second their gradient.
struct Update<'a> {
    step: AdamWStep,
    moments: RefCell<&'a mut Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        values_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let bounds = (values_layout.contiguous_offsets(), gradient_layout.contiguous_offsets());
        let (CpuStorage::F32(values), CpuStorage::F32(gradient), (Some(own), Some(of))) =
            (values, gradient, bounds)
        else {
            return Err(candle_core::Error::Msg("expected contiguous f32 values".to_owned()));
        };
        let AdamWStep { keep, clip, beta1, beta2, rate, root_correction, epsilon } = self.step;
        let mut moments = self.moments.borrow_mut();
        let Moments { first, second } = &mut **moments;
        values[own.0..own.1]
            .par_iter_mut()
            .zip(&gradient[of.0..of.1])
            .zip(first)
            .zip(second)
            .with_min_len(CHUNK)
            .for_each(|(((value, gradient), first), second)| {
                let gradient = gradient * clip;
                *first = beta1 * *first + (1.0 - beta1) * gradient;
                *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
                let root = second.sqrt() / root_correction + epsilon;
                *value = *value * keep - rate * *first / root;
            });
        Ok(())
    }
}
