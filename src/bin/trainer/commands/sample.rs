//! `trainer sample`.

use std::path::PathBuf;

use clap::Args;

use crate::args::GenerationArgs;

#[derive(Debug, Args)]
pub(crate) struct SampleArgs {
    /// The model: a folder, a GGUF file, or owner/name of a hub
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Prompts, one a line: JSONL, JSONL.gz or Parquet
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    prompts: Vec<PathBuf>,
    /// File to write, JSONL
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Samples of each prompt
    #[arg(long, default_value_t = 1)]
    samples: usize,
    /// Seed: each sample follows from it, the prompt and the sample's number
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    writing: GenerationArgs,
}

pub(crate) fn run(args: SampleArgs) -> anyhow::Result<()> {
    let SampleArgs { model, prompts, output, samples, seed, writing } = args;
    let report = writing.sample(model, &prompts, &output, samples, seed)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
