//! The generator: a language model in mistral.rs.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use mistralrs::{
    Constraint, GgufModelBuilder, Model, ModelDType, NormalRequest, Request, RequestMessage,
    ResponseOk, SamplingParams, StopTokens, TextModelBuilder, parse_isq_value,
};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};

use super::sampler::TokenSampler;
use crate::checkpoint::{Checkpoint, Message, TextEncoder};
use crate::generate::call::{Finish, Generated, GeneratorSettings, Sampling};

/// Sequences that a GPU decodes at once.
#[cfg(feature = "mistralrs-cuda")]
const GPU_SEQUENCES: usize = 32;
/// Where mistral.rs 0.8.1 decodes several sequences at once on a CPU, each gets the last one's attention, and no error
/// (`flash_attn_cpu_single_q` has room for one).
const CPU_SEQUENCES: usize = 1;

/// A loaded language model. Several threads may ask it at once.
pub struct Generator {
    model: Model,
    runtime: Runtime,
    /// One permit for each sequence that may be decoded at once.
    at_once: Semaphore,
    sequences: usize,
    encoder: TextEncoder,
    name: String,
    weights: String,
    device: &'static str,
}

impl fmt::Debug for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Generator {
    /// Loads a model: in f32 on a CPU, in the type of its weights on a GPU.
    ///
    /// # Errors
    /// What this program cannot open as a checkpoint, or mistral.rs not load; an unknown quantisation.
    pub fn load(settings: &GeneratorSettings) -> anyhow::Result<Self> {
        let GeneratorSettings { model, quantise, cpu } = settings;
        let at = || model.display().to_string();
        let Checkpoint { folder, name, encoder, weights, .. } =
            Checkpoint::open_without_baseline(model).with_context(at)?;
        let (device, sequences) = device(*cpu);
        let on_cpu = device == "cpu";
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(2)
            .build()
            .context("no threads for the language model")?;
        let quantise = quantise
            .as_deref()
            .map(|name| parse_isq_value(name, None))
            .transpose()
            .map_err(|error| anyhow::anyhow!("--quantise: {error}"))?;
        let loaded = if folder.is_file() {
            ensure!(quantise.is_none(), "--quantise: {} is quantised already", at());
            let parent = folder.parent().unwrap_or(Path::new("."));
            let file = folder.file_name().unwrap_or_default().to_string_lossy();
            // A prompt that was seen before would be computed in other blocks, and its bits differ.
            let builder = GgufModelBuilder::new(parent.display(), vec![file])
                .with_max_num_seqs(sequences)
                .with_prefix_cache_n(None);
            let builder = if on_cpu { builder.with_force_cpu() } else { builder };
            runtime.block_on(builder.build())
        } else {
            let mut builder = TextModelBuilder::new(folder.display())
                .with_max_num_seqs(sequences)
                .with_prefix_cache_n(None);
            if on_cpu {
                builder = builder.with_force_cpu().with_dtype(ModelDType::F32);
            }
            if let Some(quantise) = quantise {
                builder = builder.with_isq(quantise);
            }
            #[cfg(feature = "mistralrs-cuda")]
            if !on_cpu {
                builder = builder
                    .with_paged_attn(mistralrs::PagedAttentionMetaBuilder::default().build()?);
            }
            runtime.block_on(builder.build())
        };
        let model = loaded.with_context(|| format!("{}: mistral.rs cannot load it", at()))?;
        let at_once = Semaphore::new(sequences);
        Ok(Self { model, runtime, at_once, sequences, encoder, name, weights, device })
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hash of its weights, as that of a checkpoint.
    pub fn weights(&self) -> &str {
        &self.weights
    }

    /// `cpu` or `cuda`.
    pub fn device(&self) -> &'static str {
        self.device
    }

    /// Sequences that are decoded at once: so many threads are worth it.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Token ids of a conversation whose answer is to be written.
    ///
    /// # Errors
    /// What the chat template refuses, and a conversation that leaves no room for an answer.
    pub fn encode(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        Ok(self.encoder.encode_prompt(messages)?)
    }

    /// Writes what follows `prompt`, token ids as [`Generator::encode`] gives them. The same prompt, sampling and `sample`
    /// give the same text, whatever else the model writes meanwhile. With a JSON `schema` the text follows it.
    ///
    /// # Errors
    /// A failing engine.
    pub fn generate(
        &self,
        prompt: &[u32],
        sampling: &Sampling,
        sample: u64,
        schema: Option<&Value>,
    ) -> anyhow::Result<Generated> {
        let room = self.encoder.limit().saturating_sub(prompt.len());
        let most = sampling.max_new_tokens.min(room);
        ensure!(most > 0, "no room for an answer");
        let sampler = Arc::new(TokenSampler::new(sampling, prompt, sample));
        let text = self.runtime.block_on(self.write(prompt, &sampler, most, schema));
        text.with_context(|| format!("{}: mistral.rs failed", self.name))?;
        let mut tokens = sampler.tokens();
        let eos = self.encoder.policy().eos.id;
        // The engine looks at a token after it was drawn, and may have drawn one that it did not use.
        tokens.truncate(most);
        let finish = match tokens.last() {
            Some(&last) if last == eos || tokens.len() < most => Finish::Stop,
            _ => Finish::Length,
        };
        Ok(Generated { text: self.encoder.decode(&tokens)?, tokens, finish })
    }

    async fn write(
        &self,
        prompt: &[u32],
        sampler: &Arc<TokenSampler>,
        most: usize,
        schema: Option<&Value>,
    ) -> anyhow::Result<()> {
        let _permit = self.at_once.acquire().await.context("the engine is gone")?;
        let (response, mut answers) = mpsc::channel(1);
        let eos = self.encoder.policy().eos.id;
        let sampling_params = SamplingParams {
            max_len: Some(most),
            stop_toks: Some(StopTokens::Ids(vec![eos])),
            ..SamplingParams::deterministic()
        };
        let messages = RequestMessage::CompletionTokens(prompt.to_vec());
        let mut request =
            NormalRequest::new_simple(messages, sampling_params, response, 0, None, None);
        request.logits_processors = Some(vec![sampler.clone()]);
        if let Some(schema) = schema {
            request.constraint = Constraint::JsonSchema(schema.clone());
        }
        let request = Request::Normal(Box::new(request));
        let sender = self.model.inner().get_sender(None).map_err(anyhow::Error::msg)?;
        sender.send(request).await.map_err(|_| anyhow::anyhow!("its engine is gone"))?;
        let answer = answers.recv().await.context("its engine gave no answer")?;
        match answer.as_result() {
            Ok(ResponseOk::CompletionDone(_)) => Ok(()),
            Ok(_) => bail!("its engine answered something else than a completion"),
            Err(error) => bail!("{error}"),
        }
    }
}

/// Where models run, and how many sequences at once.
#[cfg(feature = "mistralrs-cuda")]
fn device(cpu: bool) -> (&'static str, usize) {
    if cpu { ("cpu", CPU_SEQUENCES) } else { ("cuda", GPU_SEQUENCES) }
}

#[cfg(not(feature = "mistralrs-cuda"))]
fn device(_: bool) -> (&'static str, usize) {
    ("cpu", CPU_SEQUENCES)
}
