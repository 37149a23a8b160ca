//! What is trained: all of a model, adapters beside it, its last layers, or its head alone.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor, Var};

use super::config::{FitConfig, Mode};
use super::device;
use super::device_decoder::{DeviceDecoder, DeviceParts};
use super::gradients::{Backward, Gradients};
use super::loss::{LossConfig, pair_loss};
use super::optimiser::{AdamW, OptimiserConfig};
use crate::checkpoint::{Checkpoint, MemoryTensors, TensorSource};
use crate::config::DeviceChoice;
use crate::model::{HeadOutput, RewardModel};
use crate::ops::autograd::{AutogradOps, LoraConfig, Trains, adapter_name};
use crate::ops::cpu::{CpuOps, Precision};
use crate::ops::{DeviceOps, Packing, StateTensor};
use crate::train::accuracy::scorer as evaluate;
use crate::train::data::EncodedPair;
use crate::train::features::{Depth, FeatureStore, Inference, Loaded, entering};

/// A model in training.
pub(in crate::train) struct Trained {
    kind: Kind,
    loss: LossConfig,
    recompute: bool,
    micro_batch_tokens: usize,
    lora: Option<LoraConfig>,
    hidden: usize,
}

enum Kind {
    /// A decoder, or its last layers over features of the rest.
    Decoder { model: Box<RewardModel<AutogradOps>>, frozen: Option<Frozen> },
    /// A head over features of a whole decoder, of which the model has the final norm alone, frozen with the rest.
    Head { model: Box<RewardModel<AutogradOps>>, frozen: Frozen },
    /// A decoder on a device of its own; the model has the final norm and the head.
    Device { model: Box<RewardModel<AutogradOps>>, decoder: Rc<dyn DeviceDecoder> },
}

/// What is not trained.
struct Frozen {
    features: FeatureStore,
    /// Computes features of texts that `features` has not.
    engine: Box<dyn Inference>,
    /// Numbers of each training pair's chosen and rejected text in `features`, one after the other.
    numbers: Vec<usize>,
}

/// What a batch of `B` pairs gave. Losses are means over its pairs.
#[derive(Debug, Default)]
pub(in crate::train) struct BatchResult {
    /// What is minimised.
    pub(in crate::train) loss: f64,
    /// As [`super::loss::Loss::preference`].
    pub(in crate::train) preference: f64,
    /// As [`super::loss::Loss::kl`].
    pub(in crate::train) kl: f64,
    /// Share of the pairs that are ranked right.
    pub(in crate::train) accuracy: f64,
    /// Rewards of the chosen texts, then of the rejected ones, `[2 B]`.
    pub(in crate::train) rewards: Vec<f32>,
    /// `[mu | logvar]` in the same order, `[2 B, 2 d]`; empty for a standard head.
    pub(in crate::train) posterior: Vec<f32>,
}

impl Trained {
    pub(in crate::train) fn load(
        config: &FitConfig,
        checkpoint: &Checkpoint,
        train: &[EncodedPair],
    ) -> anyhow::Result<Self> {
        // Where a device has the decoder, what is left to the CPU is in f32.
        let dtype = match config.device {
            DeviceChoice::Cuda(_) if config.mode.trains_decoder() => Precision::F32,
            _ => config.dtype,
        };
        let ops = AutogradOps::new(config.threads, dtype).context("dtype")?;
        let Checkpoint { config: model, tensors, .. } = checkpoint;
        let hidden = model.decoder.hidden_size;
        let depth = config.depth(&model.decoder)?;
        let frozen = || Frozen::load(config, checkpoint, train, depth);
        let kind = match config.mode {
            Mode::Full | Mode::Lora => {
                let trains = match config.mode {
                    Mode::Lora => Trains::Adapters { lora: config.lora.clone(), seed: config.seed },
                    _ => Trains::All,
                };
                let ops = ops.training(trains.clone());
                match device::open(
                    &config.device,
                    config.schedule.micro_batch_tokens,
                    checkpoint,
                    trains,
                )? {
                    Some(decoder) => {
                        let layers = model.decoder.num_hidden_layers;
                        let model = RewardModel::load_from(ops, model, tensors, layers)?;
                        Kind::Device { model: Box::new(model), decoder }
                    }
                    None => {
                        let model = Box::new(RewardModel::load(ops, model, tensors)?);
                        Kind::Decoder { model, frozen: None }
                    }
                }
            }
            Mode::LastLayers => {
                let frozen = frozen()?;
                let first = model.decoder.num_hidden_layers - config.last_layers;
                let model = Box::new(RewardModel::load_from(ops, model, tensors, first)?);
                Kind::Decoder { model, frozen: Some(frozen) }
            }
            Mode::Head => {
                let frozen = frozen()?;
                let (ops, layers) = (ops.training(Trains::Heads), model.decoder.num_hidden_layers);
                let model = Box::new(RewardModel::load_from(ops, model, tensors, layers)?);
                Kind::Head { model, frozen }
            }
        };
        let trained = Self {
            kind,
            loss: config.loss.clone(),
            recompute: config.recompute,
            micro_batch_tokens: config.schedule.micro_batch_tokens,
            lora: (config.mode == Mode::Lora).then(|| config.lora.clone()),
            hidden,
        };
        let names = trained.trained_names();
        ensure!(
            trained.lora.is_none() || names.iter().any(|name| is_adapter(name)),
            "lora.targets: this {} model has none of {:?}",
            checkpoint.config.decoder.architecture.family,
            config.lora.targets
        );
        Ok(trained)
    }

    fn ops(&self) -> &AutogradOps {
        match &self.kind {
            Kind::Decoder { model, .. } | Kind::Head { model, .. } | Kind::Device { model, .. } => {
                model.ops()
            }
        }
    }

    /// The decoder's device, where it has one of its own.
    fn device(&self) -> Option<&Rc<dyn DeviceDecoder>> {
        match &self.kind {
            Kind::Device { decoder, .. } => Some(decoder),
            Kind::Decoder { .. } | Kind::Head { .. } => None,
        }
    }

    /// An optimiser of all that is trained.
    pub(in crate::train) fn optimiser(&self, config: OptimiserConfig) -> AdamW {
        AdamW::new(config, self.ops().parameters()).with_device(self.device().cloned())
    }

    /// Number of trained values.
    pub(in crate::train) fn parameter_count(&self) -> usize {
        let host = self.ops().parameters();
        let host = host.iter().map(|parameter| parameter.var.elem_count()).sum::<usize>();
        let device = self.device().map(|device| device.parameters()).unwrap_or_default();
        host + device.iter().map(DeviceParts::count).sum::<usize>()
    }

    fn trained_names(&self) -> Vec<String> {
        let host = self.ops().parameters().into_iter().flat_map(|parameter| parameter.parts);
        let device = self.device().map(|device| device.parameters()).unwrap_or_default();
        host.chain(device.into_iter().flat_map(|one| one.parts)).map(|(name, _)| name).collect()
    }

    /// Loss and gradients of the pairs with these numbers. `noise` `[2 B * d]` draws the latents of their chosen texts,
    /// then those of their rejected ones.
    pub(in crate::train) fn backward(
        &self,
        train: &[EncodedPair],
        batch: &[usize],
        noise: Option<&[f32]>,
    ) -> anyhow::Result<(BatchResult, Gradients)> {
        let mut gradients = Gradients::new(self.ops().parameters());
        self.device().map_or(Ok(()), |device| device.clear_gradients())?;
        let mut result = BatchResult::default();
        // Both are gathered side by side, and put one after the other at the end.
        let mut halves_of = [(); 2].map(|()| (Vec::new(), Vec::new()));
        for range in self.micro_batches(train, batch) {
            let pairs = &batch[range.clone()];
            let share = pairs.len() as f64 / batch.len() as f64;
            let noise: Option<Vec<f32>> = noise.map(|noise| {
                let d = noise.len() / (2 * batch.len());
                let side = |first: usize| &noise[(first + range.start) * d..][..range.len() * d];
                [side(0), side(batch.len())].concat()
            });
            let margins: Vec<f32> =
                pairs.iter().map(|&pair| train[pair].margin.unwrap_or(0.0)).collect();
            let loss_of = |output: &HeadOutput<AutogradOps>| {
                let mut loss = pair_loss(output, &self.loss, &margins)?;
                loss.total = (loss.total * share)?;
                Ok(loss)
            };
            let packing = || {
                let texts: Vec<&[u32]> = sides(pairs, |pair, side| match side {
                    0 => train[pair].chosen.as_slice(),
                    _ => &train[pair].rejected,
                });
                Packing::shared(&texts).context("an empty sequence")
            };
            let (output, loss) = match &self.kind {
                Kind::Decoder { model, frozen } => {
                    let packing = packing()?;
                    let entering = frozen
                        .as_ref()
                        .map(|frozen| {
                            let states = sides(pairs, |pair, side| frozen.of(pair, side));
                            model
                                .ops()
                                .upload(entering(&packing, &states, self.hidden), self.hidden)
                        })
                        .transpose()?;
                    Backward {
                        model,
                        packing: &packing,
                        entering: entering.as_ref(),
                        noise: noise.as_deref(),
                        recompute: self.recompute,
                    }
                    .run(loss_of, &mut gradients)?
                }
                Kind::Head { model, frozen } => {
                    let values = sides(pairs, |pair, side| frozen.of(pair, side)).concat();
                    let x = model.ops().upload(values, self.hidden)?;
                    let output = model.head_forward(&x, noise.as_deref())?;
                    let loss = loss_of(&output)?;
                    gradients.add(&mut loss.total.backward()?)?;
                    (output, loss)
                }
                Kind::Device { model, decoder } => {
                    let mut found = None;
                    decoder.backward(&packing()?, self.recompute, &mut |pooled| {
                        let x = Var::from_tensor(&model.ops().upload(pooled, self.hidden)?)?;
                        let output = model.head_forward(x.as_tensor(), noise.as_deref())?;
                        let loss = loss_of(&output)?;
                        let mut known = loss.total.backward()?;
                        gradients.add(&mut known)?;
                        let gradient = known.remove(x.as_tensor());
                        found = Some((output, loss));
                        let gradient = gradient.context("a head that does not read its input")?;
                        Ok(gradient.flatten_all()?.to_vec1()?)
                    })?;
                    found.context("a decoder that gave no hidden states")?
                }
            };
            result.loss += f64::from(loss.total.to_scalar::<f32>()?);
            result.preference += share * f64::from(loss.preference);
            result.kl += share * f64::from(loss.kl);
            result.accuracy += share * f64::from(loss.accuracy);
            let rewards: Vec<f32> = output.reward.flatten_all()?.to_vec1()?;
            let posterior: Vec<f32> = match &output.posterior {
                Some(posterior) => posterior.flatten_all()?.to_vec1()?,
                None => Vec::new(),
            };
            let halves = rewards
                .chunks(pairs.len())
                .zip(posterior.chunks((posterior.len() / 2).max(1)).chain([&[][..]; 2]));
            for (side, (rewards, posterior)) in halves_of.iter_mut().zip(halves) {
                side.0.extend_from_slice(rewards);
                side.1.extend_from_slice(posterior);
            }
        }
        for (rewards, posterior) in halves_of {
            result.rewards.extend(rewards);
            result.posterior.extend(posterior);
        }
        Ok((result, gradients))
    }

    /// Consecutive pairs of a batch whose tokens, those that both texts begin with counted once, are at most as many as
    /// is allowed, or one pair.
    fn micro_batches(&self, train: &[EncodedPair], batch: &[usize]) -> Vec<Range<usize>> {
        let limit = match (&self.kind, self.micro_batch_tokens) {
            (Kind::Head { .. }, _) | (_, 0) => usize::MAX,
            (Kind::Decoder { .. } | Kind::Device { .. }, limit) => limit,
        };
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut tokens = 0;
        for (index, &pair) in batch.iter().enumerate() {
            let own = train[pair].computed_tokens();
            tokens += own;
            match ranges.last_mut() {
                Some(range) if tokens <= limit => range.end = index + 1,
                _ => {
                    ranges.push(index..index + 1);
                    tokens = own;
                }
            }
        }
        ranges
    }

    /// Rewards of each pair's chosen and rejected text, one after the other, with the weights as they are now and
    /// the latents' means.
    pub(in crate::train) fn rewards(
        &mut self,
        checkpoint: &Checkpoint,
        threads: usize,
        pairs: &[EncodedPair],
    ) -> anyhow::Result<Vec<f64>> {
        let texts: Vec<&[u32]> =
            pairs.iter().flat_map(|pair| [pair.chosen.as_slice(), &pair.rejected]).collect();
        let stored = match &self.kind {
            Kind::Decoder { .. } => self.export(checkpoint)?,
            Kind::Head { .. } | Kind::Device { .. } => MemoryTensors::default(),
        };
        let cpu = || CpuOps::new(threads, Precision::F32);
        let scores = match &mut self.kind {
            Kind::Decoder { frozen: None, .. } => {
                let model = RewardModel::load(cpu()?, &checkpoint.config, &stored)?;
                evaluate::scores(&model, &texts)?
            }
            Kind::Decoder { model, frozen: Some(Frozen { features, engine, .. }) } => {
                let numbers = features.numbers(engine.as_ref(), &texts)?;
                let first = model.decoder().layers().start;
                let model = Loaded::on_cpu(cpu()?, &checkpoint.config, &stored, first)?;
                evaluate::scores_from(&model, features, &numbers, &texts, self.hidden)?
            }
            Kind::Head { model, frozen: Frozen { features, engine, .. } } => {
                let numbers = features.numbers(engine.as_ref(), &texts)?;
                let values = numbers.iter().flat_map(|&number| features.get(number)).copied();
                return head_rewards(model, values.collect(), self.hidden);
            }
            Kind::Device { model, decoder } => {
                let mut values = Vec::with_capacity(texts.len() * self.hidden);
                for batch in evaluate::batches(&texts) {
                    let packing = Packing::shared(&texts[batch]).context("an empty text")?;
                    values.extend(decoder.pooled(&packing)?);
                }
                return head_rewards(model, values, self.hidden);
            }
        };
        Ok(scores.iter().map(|score| f64::from(score.reward)).collect())
    }

    /// Every tensor of the checkpoint as its family names and lays it out, the trained ones as they are now, adapters merged
    /// into what they stand beside.
    pub(in crate::train) fn export(
        &self,
        checkpoint: &Checkpoint,
    ) -> anyhow::Result<MemoryTensors> {
        let trained = self.trained_tensors()?;
        let decoder = &checkpoint.config.decoder;
        let replaces_all =
            matches!(&self.kind, Kind::Decoder { frozen: None, .. } | Kind::Device { .. });
        let mut tensors = match (&self.lora, replaces_all) {
            (None, true) => MemoryTensors::default(),
            _ => checkpoint.tensors.to_memory()?,
        };
        for (name, tensor) in &trained {
            let adapted =
                name.strip_suffix(".lora_A.weight").map(|layer| format!("{layer}.weight"));
            let (tensor_name, tensor) = match (adapted, &self.lora) {
                (Some(adapted), Some(lora)) => {
                    let b = adapter_name(&adapted, 'B');
                    let b = trained.iter().find(|(name, _)| *name == b);
                    let (_, b) = b.with_context(|| format!("{name}: no B beside it"))?;
                    let (rows, columns) = (b.dim(0)?, tensor.dim(1)?);
                    let base = decoder.tensors(&checkpoint.tensors);
                    let base = base.f32(&adapted, &[rows, columns])?;
                    let base = Tensor::from_vec(base, (rows, columns), &Device::Cpu)?;
                    (adapted, (base + (b.matmul(tensor)? * lora.scale())?)?)
                }
                _ if name.ends_with(".lora_B.weight") => continue,
                _ => (name.clone(), tensor.clone()),
            };
            let values = tensor.flatten_all()?.to_vec1()?;
            decoder.store(&mut tensors, &tensor_name, tensor.dims(), values);
        }
        Ok(tensors)
    }

    /// The adapters as they are now, under their names beside the weights; `None` where there are none.
    pub(in crate::train) fn adapters(&self) -> anyhow::Result<Option<(LoraConfig, MemoryTensors)>> {
        let Some(lora) = &self.lora else { return Ok(None) };
        let mut tensors = MemoryTensors::default();
        for (name, tensor) in self.trained_tensors()? {
            if is_adapter(&name) {
                tensors.insert(&name, tensor.dims(), tensor.flatten_all()?.to_vec1()?);
            }
        }
        Ok(Some((lora.clone(), tensors)))
    }

    /// Every trained tensor by its name.
    fn trained_tensors(&self) -> anyhow::Result<Vec<(String, Tensor)>> {
        let mut stacks: Vec<(Vec<(String, usize)>, Tensor)> = self
            .ops()
            .parameters()
            .into_iter()
            .map(|parameter| (parameter.parts, parameter.var.as_detached_tensor()))
            .collect();
        if let Some(device) = self.device() {
            for (index, DeviceParts { parts, shape }) in device.parameters().into_iter().enumerate()
            {
                let values = device.read(index, StateTensor::Values)?;
                stacks.push((parts, Tensor::from_vec(values, shape, &Device::Cpu)?));
            }
        }
        let mut tensors = Vec::new();
        for (parts, stack) in stacks {
            let mut first = 0;
            for (name, rows) in parts {
                tensors.push((name, stack.narrow(0, first, rows)?.contiguous()?));
                first += rows;
            }
        }
        Ok(tensors)
    }
}

impl Frozen {
    fn load(
        config: &FitConfig,
        checkpoint: &Checkpoint,
        train: &[EncodedPair],
        depth: Depth,
    ) -> anyhow::Result<Self> {
        let Checkpoint { config: model, tensors, .. } = checkpoint;
        let folder = config.features.folder.as_deref();
        let engine = config.compute().load(checkpoint, 0)?;
        let arithmetic = engine.arithmetic();
        let mut features = FeatureStore::open(folder, model, tensors, arithmetic, depth)
            .context("features.folder")?;
        let texts: Vec<&[u32]> =
            train.iter().flat_map(|pair| [pair.chosen.as_slice(), &pair.rejected]).collect();
        let numbers = features.numbers(engine.as_ref(), &texts)?;
        Ok(Self { features, engine, numbers })
    }

    /// Features of a training pair's chosen text, side 0, or its rejected one.
    fn of(&self, pair: usize, side: usize) -> &[f32] {
        self.features.get(self.numbers[2 * pair + side])
    }
}

/// Rewards of pooled hidden states `[n * hidden]`, by the latents' means.
fn head_rewards(
    model: &RewardModel<AutogradOps>,
    pooled: Vec<f32>,
    hidden: usize,
) -> anyhow::Result<Vec<f64>> {
    let x = model.ops().upload(pooled, hidden)?;
    let rewards = model.ops().read(&model.head_forward(&x, None)?.reward)?;
    Ok(rewards.into_iter().map(f64::from).collect())
}

fn is_adapter(name: &str) -> bool {
    name.contains(".lora_")
}

/// What `of(pair, side)` gives for the chosen texts, side 0, of all pairs, then for their rejected ones.
fn sides<T>(pairs: &[usize], of: impl Fn(usize, usize) -> T) -> Vec<T> {
    let of = &of;
    (0..2).flat_map(|side| pairs.iter().map(move |&pair| of(pair, side))).collect()
}
