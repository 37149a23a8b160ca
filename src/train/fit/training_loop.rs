//! The steps of a run: batches, loss, optimiser, evaluations on the way.

use std::time::Instant;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::config::FitConfig;
use super::epoch::Epochs;
use super::loss::{active_dimensions, mean_margin};
use super::optimiser::AdamW;
use super::progress::{Best, Progress, State};
use super::record::{EpochMeans, FitReport};
use super::trainable::Trained;
use crate::checkpoint::Checkpoint;
use crate::model::standard_normal;
use crate::train::accuracy::PairAccuracy;
use crate::train::data::EncodedPair;

/// A line of the log: one step.
#[derive(Debug, Serialize)]
struct StepRecord {
    step: usize,
    epoch: usize,
    /// What was minimised, and its parts.
    loss: f64,
    preference: f64,
    kl: f64,
    /// Share of the batch's pairs ranked right.
    accuracy: f64,
    /// Mean of `r_w - r_l` over the batch's pairs.
    margin: f64,
    /// Of an InfoRM head, see [`active_dimensions`].
    #[serde(skip_serializing_if = "Option::is_none")]
    active_dimensions: Option<usize>,
    learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    gradient_norm: f64,
    pairs: usize,
}

/// A line of the log: an evaluation after so many steps.
#[derive(Debug, Serialize)]
struct EvaluationRecord {
    step: usize,
    evaluation: PairAccuracy,
}

/// What a run works with.
pub(in crate::train) struct Descent<'a> {
    pub(in crate::train) config: &'a FitConfig,
    pub(in crate::train) checkpoint: &'a Checkpoint,
    pub(in crate::train) train: &'a [EncodedPair],
    pub(in crate::train) held_out: &'a [EncodedPair],
}

impl Descent<'_> {
    /// Takes every step that `progress` has not seen yet; epochs and steps go into `report`.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite (names the step and the batch's pairs), a failing operation, or
    /// progress that cannot be written.
    pub(in crate::train) fn run(
        &self,
        model: &mut Trained,
        progress: &mut Progress,
        report: &mut FitReport,
    ) -> anyhow::Result<()> {
        let Self { config, train, .. } = self;
        let schedule = &config.schedule;
        let mut epochs = Epochs::new(train, &config.data.files, config.seed)?;
        let steps_per_epoch = epochs.pairs().div_ceil(schedule.pairs_per_step);
        let steps = steps_per_epoch * schedule.epochs;
        let mut optimiser = model.optimiser(config.optimiser.clone());
        let mut state = progress.resume(&mut optimiser)?.unwrap_or_default();
        if state.steps > 0 {
            eprintln!("resumed after step {} of {steps}", state.steps);
        }
        let mut order = Vec::new();
        for _ in 0..state.steps.div_ceil(steps_per_epoch) {
            order = epochs.next();
        }
        let latent_dim = config.head.head().latent_dim();
        let bar = ProgressBar::new(steps as u64).with_style(ProgressStyle::with_template(
            "{bar:30} {pos}/{len} steps, {elapsed} + {eta}  {msg}",
        )?);
        bar.set_position(state.steps as u64);
        let begun = Instant::now();
        let mut pairs_done = 0;
        for step in state.steps..steps {
            let (epoch, place) = (step / steps_per_epoch, step % steps_per_epoch);
            if place == 0 {
                order = epochs.next();
            }
            let first = place * schedule.pairs_per_step;
            let batch = &order[first..(first + schedule.pairs_per_step).min(order.len())];
            let record =
                self.step(model, &mut optimiser, batch, latent_dim, (step, steps), epoch)?;
            progress.log(&record)?;

            pairs_done += batch.len();
            let pairs_per_second = pairs_done as f64 / begun.elapsed().as_secs_f64();
            let share = batch.len() as f64 / order.len() as f64;
            state.steps += 1;
            state.epoch.loss += share * record.loss;
            state.epoch.accuracy += share * record.accuracy;
            state.epoch.kl += share * record.kl;
            bar.set_message(format!(
                "loss {:.4}, accuracy {:.3}, KL {:.2}, {pairs_per_second:.1} pairs/s",
                record.loss, record.accuracy, record.kl
            ));
            bar.inc(1);
            if place + 1 == steps_per_epoch {
                let means = std::mem::take(&mut state.epoch);
                let EpochMeans { loss, accuracy, kl } = means;
                // A hidden bar, where standard error is no terminal, prints nothing.
                bar.suspend(|| {
                    eprintln!(
                        "epoch {}: loss {loss:.4}, accuracy {accuracy:.4}, KL {kl:.3}, \
                         {pairs_per_second:.1} pairs/s",
                        epoch + 1
                    );
                });
                state.epochs.push(means);
            }
            let taken = state.steps;
            let is_due = |every: usize| every > 0 && taken.is_multiple_of(every);
            if is_due(config.evaluation.every_steps) && !self.held_out.is_empty() {
                bar.suspend(|| self.evaluate(model, &optimiser, progress, &mut state))?;
            }
            if is_due(config.progress.every_steps) && state.steps < steps {
                progress.save(&state, &optimiser)?;
            }
        }
        bar.finish_and_clear();
        if let Some(best) = state.best {
            eprintln!(
                "best of the evaluations: after step {}, accuracy {:.4}",
                best.step, best.accuracy
            );
            progress.put_best_back(&optimiser)?;
            report.best_step = Some(best.step);
        }
        report.steps = state.steps;
        report.epochs = state.epochs;
        Ok(())
    }

    fn step(
        &self,
        model: &Trained,
        optimiser: &mut AdamW,
        batch: &[usize],
        latent_dim: Option<usize>,
        (step, steps): (usize, usize),
        epoch: usize,
    ) -> anyhow::Result<StepRecord> {
        let Self { config, train, .. } = self;
        let noise =
            latent_dim.map(|d| standard_normal(config.seed, step as u64, 2 * batch.len() * d));
        let at = || format!("step {step}; the batch: {}", origins(train, batch));
        let (found, gradients) = model.backward(train, batch, noise.as_deref()).with_context(at)?;
        anyhow::ensure!(found.loss.is_finite(), "the loss is {}: {}", found.loss, at());
        let (chosen, rejected) = found.rewards.split_at(batch.len());
        let active = latent_dim.map(|d| active_dimensions(&found.posterior, d));
        let share = config.schedule.share(step, steps);
        let gradient_norm = optimiser.step(&gradients, share).with_context(at)?;
        Ok(StepRecord {
            step,
            epoch,
            loss: found.loss,
            preference: found.preference,
            kl: found.kl,
            accuracy: found.accuracy,
            margin: mean_margin(chosen, rejected),
            active_dimensions: active,
            learning_rate: config.optimiser.learning_rate * share,
            gradient_norm,
            pairs: batch.len(),
        })
    }

    /// Scores held-out pairs with the weights as they are now.
    fn evaluate(
        &self,
        model: &mut Trained,
        optimiser: &AdamW,
        progress: &mut Progress,
        state: &mut State,
    ) -> anyhow::Result<()> {
        let settings = &self.config.evaluation;
        let pairs = &self.held_out[..self.held_out.len().min(settings.pairs)];
        let rewards = model.rewards(self.checkpoint, self.config.threads, pairs)?;
        let found = PairAccuracy::of(&rewards);
        let PairAccuracy { accuracy, interval: (low, high), .. } = found;
        eprintln!(
            "after step {}: held-out accuracy {accuracy:.4} ({low:.4} to {high:.4})",
            state.steps
        );
        progress.log(&EvaluationRecord { step: state.steps, evaluation: found })?;
        if settings.keep_best && state.best.is_none_or(|best| accuracy > best.accuracy) {
            state.best = Some(Best { step: state.steps, accuracy });
            progress.keep_best(optimiser)?;
        }
        Ok(())
    }
}

/// Where the pairs of a batch stand.
fn origins(train: &[EncodedPair], batch: &[usize]) -> String {
    let origins: Vec<String> = batch.iter().map(|&pair| train[pair].origin.to_string()).collect();
    origins.join("; ")
}
