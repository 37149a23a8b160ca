//! AdamW with global-norm clipping.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp2, Layout};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::gradients::{Gradients, with_values};
use crate::ops::autograd::Parameter;

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
    pub(super) fn check(&self) -> anyhow::Result<()> {
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

/// Moments of every parameter.
#[derive(Debug)]
pub struct AdamW {
    config: OptimiserConfig,
    parameters: Vec<(Parameter, Moments)>,
    steps: i32,
}

#[derive(Debug)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
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
        Self { config, parameters, steps: 0 }
    }

    /// What it steps.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().map(|(parameter, _)| parameter)
    }

    /// Each parameter with its first and second moment.
    pub(super) fn state(&self) -> impl Iterator<Item = (&Parameter, &[f32], &[f32])> {
        self.parameters.iter().map(|(parameter, moments)| {
            (parameter, moments.first.as_slice(), moments.second.as_slice())
        })
    }

    /// Goes on after `steps` steps that left these moments.
    pub(super) fn restore(&mut self, steps: usize, moments: Vec<(Vec<f32>, Vec<f32>)>) {
        self.steps = steps as i32;
        for ((_, own), (first, second)) in self.parameters.iter_mut().zip(moments) {
            *own = Moments { first, second };
        }
    }

    /// Takes one step at `share` of the peak learning rate; returns the gradients' norm before
    /// clipping. Parameters without a gradient are left as they are.
    ///
    /// # Errors
    /// A gradient that is not finite, or a failing tensor operation; no parameter was changed then.
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
        let norm = squares.sqrt();
        anyhow::ensure!(norm.is_finite(), "the gradient is not finite");
        let clip = (self.config.clip_norm / norm).min(1.0) as f32;
        self.steps += 1;

        let config = &self.config;
        let rate = config.learning_rate * share;
        for ((parameter, moments), gradient) in self.parameters.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let keep =
                if parameter.decays { (1.0 - rate * config.weight_decay) as f32 } else { 1.0 };
            let update = Update {
                keep,
                clip,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                rate: (rate / (1.0 - config.beta1.powi(self.steps))) as f32,
                root_correction: (1.0 - config.beta2.powi(self.steps)).sqrt() as f32,
                epsilon: config.epsilon as f32,
                moments: RefCell::new(moments),
            };
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
    /// What weight decay leaves.
    keep: f32,
    clip: f32,
    beta1: f32,
    beta2: f32,
    /// The learning rate, corrected for the first moment's start at 0.
    rate: f32,
    /// The same for the root of the second moment.
    root_correction: f32,
    epsilon: f32,
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
        let Self { keep, clip, beta1, beta2, rate, root_correction, epsilon, .. } = *self;
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
