//! `trainer baseline`.

use std::path::PathBuf;

use clap::Args;
use inform::train::{BaselineSettings, Compute, make_baseline, open_with_latents};

use crate::args::{ComputeArgs, FirstSampleArgs, bad_lines};

#[derive(Debug, Args)]
pub(crate) struct BaselineArgs {
    /// Checkpoint folder; its weights are not touched
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// SFT answers, one a line, JSONL or JSONL.gz; with --sample-from the file where they are kept
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    sampled: FirstSampleArgs,
    /// Answers to use; of more, so many are drawn
    #[arg(long, default_value_t = 1024)]
    samples: usize,
    /// Seed of the draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave out lines that are no answers or too long, and name them, instead of stopping at the first
    #[arg(long)]
    drop_bad_lines: bool,
    #[command(flatten)]
    computing: ComputeArgs,
}

pub(crate) fn run(args: BaselineArgs) -> anyhow::Result<()> {
    let BaselineArgs { model, data, sampled, samples, seed, drop_bad_lines, computing } = args;
    let compute = Compute::from(computing);
    let check = || {
        compute.check()?;
        open_with_latents(&model).map(|_| ())
    };
    sampled.draw("--data", &data, 1, seed, check)?;
    let report = make_baseline(&BaselineSettings {
        model: &model,
        data: &data,
        samples,
        seed,
        bad_lines: bad_lines(drop_bad_lines),
        compute,
    })?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
