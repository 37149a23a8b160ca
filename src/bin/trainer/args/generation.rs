//! Options of the commands that let a language model write.

use std::path::{Path, PathBuf};

use clap::Args;
use inform::generate::{GeneratorSettings, Sampling};
use inform::train::{SampleReport, SampleSettings, sample};

/// How a language model writes.
#[derive(Debug, Args)]
pub(crate) struct GenerationArgs {
    /// Divides the logits; 0 takes the most probable token each time
    #[arg(long, default_value_t = Sampling::default().temperature)]
    temperature: f64,
    /// Tokens are drawn from the fewest most probable ones that have this probability together
    #[arg(long, default_value_t = Sampling::default().top_p)]
    top_p: f64,
    /// Most tokens of a response
    #[arg(long, default_value_t = Sampling::default().max_new_tokens)]
    max_new_tokens: usize,
    /// Quantise the weights when they are loaded: q8_0, q6k, q5k, q4k, or another type of mistral.rs
    #[arg(long, value_name = "TYPE")]
    quantise: Option<String>,
    /// Use the CPU even where this program can use a GPU
    #[arg(long)]
    cpu: bool,
}

/// Responses that are drawn before they are used.
#[derive(Debug, Args)]
pub(crate) struct FirstSampleArgs {
    /// Language model that answers --prompts first
    #[arg(long, value_name = "MODEL", requires = "prompts")]
    sample_from: Option<PathBuf>,
    /// Prompts for --sample-from, one a line: JSONL, JSONL.gz or Parquet
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "sample_from")]
    prompts: Vec<PathBuf>,
    #[command(flatten)]
    writing: GenerationArgs,
}

impl GenerationArgs {
    /// Draws samples and says what they are on standard error.
    pub(crate) fn sample(
        self,
        model: PathBuf,
        prompts: &[PathBuf],
        output: &Path,
        samples: usize,
        seed: u64,
    ) -> anyhow::Result<SampleReport> {
        let Self { temperature, top_p, max_new_tokens, quantise, cpu } = self;
        sample(&SampleSettings {
            generator: GeneratorSettings { model, quantise, cpu },
            prompts,
            samples,
            sampling: Sampling { temperature, top_p, max_new_tokens, seed },
            output,
        })
    }
}

impl FirstSampleArgs {
    /// Draws `samples` of each prompt into the only file of `files`, where a model is to; once `check` has found that they can
    /// be used.
    pub(crate) fn draw(
        self,
        flag: &str,
        files: &[PathBuf],
        samples: usize,
        seed: u64,
        check: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(model) = self.sample_from else { return Ok(()) };
        let [file] = files else { anyhow::bail!("{flag}: with --sample-from it is one file") };
        check()?;
        self.writing.sample(model, &self.prompts, file, samples, seed).map(|_| ())
    }
}
