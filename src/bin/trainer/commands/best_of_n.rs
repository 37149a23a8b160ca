//! `trainer best-of-n`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use inform::checkpoint::Checkpoint;
use inform::train::{BestOfN, Compute};

use crate::args::{ComputeArgs, FirstSampleArgs};

#[derive(Debug, Args)]
pub(crate) struct BestOfNArgs {
    /// Several responses to each prompt: JSONL, JSONL.gz or Parquet; with --sample-from the file where they are kept
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    samples: Vec<PathBuf>,
    #[command(flatten)]
    sampled: FirstSampleArgs,
    /// Seed of the samples
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Checkpoints by which the best is chosen
    #[arg(long, value_name = "MODEL", num_args = 1.., required = true)]
    proxy: Vec<PathBuf>,
    /// Checkpoint that says what the chosen are worth
    #[arg(long, value_name = "MODEL")]
    gold: PathBuf,
    /// Numbers of samples to choose from; each prompt needs as many as the greatest
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [1, 2, 4, 8, 16])]
    n: Vec<usize>,
    /// SFT answers that the chosen are compared with, instead of the proxies' baselines
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    #[command(flatten)]
    computing: ComputeArgs,
    /// Folder for the table, the same as JSON, and the chosen samples
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Folder for the plots, SVG
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: BestOfNArgs) -> anyhow::Result<()> {
    let BestOfNArgs {
        samples,
        sampled,
        seed,
        proxy,
        gold,
        n,
        baseline,
        computing,
        output,
        plots,
        json,
    } = args;
    let most = n.iter().copied().max().unwrap_or(1);
    let compute = Compute::from(computing);
    let check = || {
        compute.check()?;
        let open = |model: &PathBuf| {
            Checkpoint::open_without_baseline(model).with_context(|| model.display().to_string())
        };
        proxy.iter().chain([&gold]).try_for_each(|model| open(model).map(|_| ()))
    };
    sampled.draw("--samples", &samples, most, seed, check)?;
    let report = BestOfN {
        samples: &samples,
        proxies: &proxy,
        gold: &gold,
        n: &n,
        baseline: baseline.as_deref(),
        compute,
    }
    .run()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.markdown());
    }
    output.map_or(Ok(()), |folder| report.write(&folder))?;
    plots.map_or(Ok(()), |folder| report.plot(&folder))
}
