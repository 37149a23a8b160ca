//! `trainer monitor-replay`.

use std::path::PathBuf;

use clap::Args;
use inform::config::ServerConfig;
use inform::replay::Replay;

#[derive(Debug, Args)]
pub(crate) struct MonitorReplayArgs {
    /// Answers, one a line, JSONL or JSONL.gz
    file: PathBuf,
    /// SFT answers in the same forms, instead of the checkpoint's baseline
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Checkpoint folder: scores answers that are texts, and has a baseline
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Settings of the server, TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for the evaluations
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Folder for the plots, SVG
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

pub(crate) fn run(args: MonitorReplayArgs) -> anyhow::Result<()> {
    let MonitorReplayArgs { file, baseline, model, config, output, plots } = args;
    let replayed = Replay {
        config: ServerConfig::read(config.as_deref(), &[])?,
        model: model.as_deref(),
        baseline: baseline.as_deref(),
    }
    .run(&file)?;
    for problem in &replayed.skipped {
        eprintln!("left out: {problem}");
    }
    print!("{replayed}");
    output.map_or(Ok(()), |folder| replayed.write(&folder))?;
    plots.map_or(Ok(()), |folder| replayed.plot(&folder))
}
