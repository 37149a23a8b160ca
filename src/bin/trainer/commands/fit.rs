//! `trainer fit`.

use std::path::PathBuf;

use clap::Args;
use inform::train::{FitConfig, WeightedFile, fit};

#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Settings, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Data files instead of the settings' own; each has a weight of 1
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Output folder instead of the settings' own
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Seed instead of the settings' own
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) fn run(args: FitArgs) -> anyhow::Result<()> {
    let FitArgs { config, data, output, seed } = args;
    let mut config = FitConfig::read(&config)?;
    if !data.is_empty() {
        config.data.files = data.into_iter().map(WeightedFile::from).collect();
    }
    if let Some(output) = output {
        config.output = output;
    }
    config.seed = seed.unwrap_or(config.seed);
    let report = fit(&config)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
