//! `trainer sweep`.

use std::path::PathBuf;

use clap::Args;
use inform::train::{SweepConfig, WeightedFile, sweep};

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// Settings of the sweep, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Data files instead of the base's own
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Output folder instead of the settings' own
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: SweepArgs) -> anyhow::Result<()> {
    let SweepArgs { config, data, output } = args;
    let mut config = SweepConfig::read(&config)?;
    if !data.is_empty() {
        config.fit.data.files = data.into_iter().map(WeightedFile::from).collect();
    }
    if let Some(output) = output {
        config.output = output;
    }
    let report = sweep(&config)?;
    print!("{}", report.markdown());
    let failed: Vec<&str> = report.failed.iter().map(|run| run.name.as_str()).collect();
    anyhow::ensure!(failed.is_empty(), "these runs failed: {}", failed.join(", "));
    Ok(())
}
