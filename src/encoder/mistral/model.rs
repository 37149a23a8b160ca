//! A reward model whose backbone runs in mistral.rs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use mistralrs::{
    EmbeddingModelBuilder, Model, ModelDType, NormalRequest, Request, RequestMessage, ResponseOk,
    SamplingParams, parse_isq_value,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::view;
use crate::config::{DeviceChoice, DtypeChoice, EncoderConfig, ServerConfig};
use crate::encoder::loaded::{EncodedModel, EncoderInfo};
use crate::model::{RewardModel, Score, ScoreError, Scorer};
use crate::model_loader::ServedModel;
use crate::ops::cpu::{CpuOps, Precision};
use crate::ops::{DeviceOps, Packing};

/// The release that was looked at.
const VERSION: &str = "0.8.1";

/// A backbone in mistral.rs, and this program's head on the CPU.
struct MistralModel {
    engine: Model,
    runtime: Runtime,
    /// Without layers: final norm and head.
    readout: RewardModel<CpuOps>,
    hidden: usize,
    /// Of the final norm.
    epsilon: f32,
    sequences: usize,
}

/// Loads the model as the settings say.
///
/// # Errors
/// An ensemble, a backbone that mistral.rs does not compute, settings that do not go with it; each names the setting.
pub fn load(config: &ServerConfig, served: &ServedModel) -> anyhow::Result<EncodedModel> {
    ensure!(
        served.ensemble.is_none(),
        "encoder: an ensemble runs in this program's own encoder alone"
    );
    let EncoderConfig { quantise, sequences } = &config.mistralrs;
    let on_cpu = on_cpu(&config.device)?;
    ensure!(
        !(on_cpu && config.dtype == DtypeChoice::Bf16),
        "dtype: mistral.rs multiplies no bf16 on a CPU; leave it at auto"
    );
    let checkpoint = &served.checkpoint;
    let isq = (!quantise.is_empty())
        .then(|| parse_isq_value(quantise, None))
        .transpose()
        .map_err(|error| anyhow::anyhow!("mistralrs.quantise: {error}"))?;
    let folder = view::write(checkpoint)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("no thread for mistral.rs")?;
    let engine = runtime
        .block_on(build(folder.path(), on_cpu, isq, *sequences))
        .context("encoder: mistral.rs cannot load the backbone")?;

    let ops = CpuOps::new(config.threads, Precision::F32).context("threads")?;
    let decoder = &checkpoint.config.decoder;
    let (layers, hidden) = (decoder.num_hidden_layers, decoder.hidden_size);
    let readout = RewardModel::load_from(ops, &checkpoint.config, &checkpoint.tensors, layers)?;
    let epsilon = decoder.rms_norm_eps;
    let sequences = *sequences;
    let model = MistralModel { engine, runtime, readout, hidden, epsilon, sequences };
    // Whatever would fail in every batch fails before serving.
    model.score(&[&[0], &[0]]).context("encoder: mistral.rs cannot compute")?;
    let (device, precision) = match on_cpu {
        true => ("cpu", Precision::F32),
        false => ("cuda", Precision::Bf16),
    };
    let weights = if quantise.is_empty() { precision.name() } else { quantise };
    let info = EncoderInfo {
        engine: "mistral.rs",
        version: VERSION,
        quantise: (!quantise.is_empty()).then(|| quantise.clone()),
        sequences,
        shares_prefixes: false,
    };
    let device = format!("mistral.rs {VERSION} ({device}, {weights})");
    Ok(EncodedModel { scorer: Box::new(model), device, precision, info })
}

async fn build(
    folder: &Path,
    on_cpu: bool,
    isq: Option<mistralrs::IsqType>,
    sequences: usize,
) -> anyhow::Result<Model> {
    let mut builder = EmbeddingModelBuilder::new(folder.display()).with_max_num_seqs(sequences);
    builder = match on_cpu {
        true => builder.with_force_cpu().with_dtype(ModelDType::F32),
        false => builder.with_dtype(ModelDType::BF16),
    };
    if let Some(isq) = isq {
        builder = builder.with_isq(isq);
    }
    builder.build().await
}

#[cfg(feature = "mistralrs-cuda")]
fn on_cpu(device: &DeviceChoice) -> anyhow::Result<bool> {
    // mistral.rs spreads a model over all the GPUs that it sees.
    let named = matches!(device, DeviceChoice::Cuda(ordinals) if !ordinals.is_empty());
    ensure!(
        !named,
        "device: mistral.rs takes every GPU that CUDA_VISIBLE_DEVICES leaves; say cuda"
    );
    Ok(*device == DeviceChoice::Cpu)
}

#[cfg(not(feature = "mistralrs-cuda"))]
fn on_cpu(device: &DeviceChoice) -> anyhow::Result<bool> {
    ensure!(
        !matches!(device, DeviceChoice::Cuda(_)),
        "device: this build's mistral.rs knows no GPU: build it with `--features mistralrs-cuda`"
    );
    Ok(true)
}

impl MistralModel {
    /// Sum and last of the hidden states of some texts, after the final norm: `2 * hidden` numbers each.
    async fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        let sender = self.engine.inner().get_sender(None).map_err(|error| error.to_string())?;
        let mut waiting = Vec::with_capacity(texts.len());
        for text in texts {
            let (response, answer) = mpsc::channel(1);
            let messages = RequestMessage::EmbeddingTokens { prompt: text.clone() };
            let sampling = SamplingParams::deterministic();
            let request = NormalRequest::new_simple(messages, sampling, response, 0, None, None);
            let request = Request::Normal(Box::new(request));
            sender.send(request).await.map_err(|_| "its engine is gone".to_owned())?;
            waiting.push(answer);
        }
        let mut found = Vec::with_capacity(texts.len());
        for mut answer in waiting {
            let answer = answer.recv().await.ok_or("its engine gave no answer")?;
            match answer.as_result() {
                Ok(ResponseOk::Embeddings { embeddings, .. })
                    if embeddings.len() == 2 * self.hidden =>
                {
                    found.push(embeddings);
                }
                Ok(_) => return Err("it answered something else than two hidden states".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(found)
    }
}

/// Gives back what a norm has taken: `y` that came out of `x / sqrt(mean(x^2) + epsilon)` becomes `c y`, of which the same
/// norm makes `y` again. `c^2 = epsilon / (1 - mean(y^2))`; where epsilon was nothing beside `x`, any large one will do.
fn stretch(y: &mut [f32], epsilon: f32) {
    let squares = y.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
    let missing = (1.0 - squares / y.len() as f64).max(1e-12);
    let factor = (f64::from(epsilon) / missing).sqrt();
    y.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
}

impl Scorer for MistralModel {
    /// Texts of one length go together, as many as the settings say: mistral.rs pads no batch of hidden states. A text of
    /// one token makes its engine panic; it goes twice, and of the sum and the last hidden state follows the first.
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut texts: Vec<Vec<u32>> = (0..packing.sequences())
            .map(|text| packing.rows_of(text).into_iter().map(|row| packing.ids()[row]).collect())
            .collect();
        for (index, text) in texts.iter().enumerate() {
            by_length.entry(text.len()).or_default().push(index);
        }
        let mut pooled = vec![0.0; texts.len() * self.hidden];
        for (length, indices) in by_length {
            for indices in indices.chunks(self.sequences) {
                let own: Vec<Vec<u32>> = indices
                    .iter()
                    .map(|&index| {
                        let text = std::mem::take(&mut texts[index]);
                        if length == 1 { text.repeat(2) } else { text }
                    })
                    .collect();
                let found = self.runtime.block_on(self.embed(&own)).map_err(ScoreError::Encoder)?;
                for (&index, states) in indices.iter().zip(&found) {
                    let (sum, last) = states.split_at(self.hidden);
                    let target = &mut pooled[index * self.hidden..][..self.hidden];
                    for ((target, sum), last) in target.iter_mut().zip(sum).zip(last) {
                        *target = if length == 1 { sum - last } else { *last };
                    }
                    stretch(target, self.epsilon);
                }
            }
        }
        let ops = self.readout.ops();
        Ok(self.readout.score_pooled(&ops.upload(pooled, self.hidden)?)?)
    }

    fn reward_spread(&self, score: &Score, draws: usize) -> Result<Option<f32>, ScoreError> {
        self.readout.reward_spread(score, draws)
    }
}
