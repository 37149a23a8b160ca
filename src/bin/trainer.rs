//! The trainer's command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use inform::checkpoint::{Checkpoint, DecodeKind, HeadConfig};
use inform::config::ServerConfig;
use inform::ops::cpu::Precision;
use inform::replay::Replay;
use inform::train::{
    BadLines, Evaluation, FeatureConfig, FitConfig, Judge, PairAccuracy, PairLimits, TRAINING_FILE,
    TrainingRecord, WeightedFile, encode_pairs, fit, init_head, name_left_out, read_pairs,
    side_by_side,
};

/// Keeps freed memory for the next batch: returning it to the system costs as much as the arithmetic.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes and evaluates the checkpoints that inform-server loads.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a reward model on preference pairs
    Fit {
        /// Settings, TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Data files instead of the settings' own; each has a weight of 1
        #[arg(long, value_name = "FILE", num_args = 1..)]
        data: Vec<PathBuf>,
        /// Output folder instead of the settings' own
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
    /// Pair accuracy of checkpoints with 95 % intervals: overall, by subset, by which answer is longer
    Eval {
        /// Checkpoint folders; several stand side by side
        #[arg(long, value_name = "DIR", num_args = 1.., required = true)]
        model: Vec<PathBuf>,
        /// Data files: JSONL, JSONL.gz or Parquet
        #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
        data: Vec<PathBuf>,
        /// Only the pairs that the checkpoint's training held out of these files
        #[arg(long)]
        held_out: bool,
        /// Leave out lines that are no pairs, and name them, instead of stopping at the first
        #[arg(long)]
        drop_bad_lines: bool,
        /// Longest sequence, in tokens [default: that of the training, or else the model's context]
        #[arg(long)]
        max_tokens: Option<usize>,
        /// Threads; 0 for one a processor
        #[arg(long, default_value_t = 0)]
        threads: usize,
        /// Precision of products
        #[arg(long, value_enum, default_value_t = Dtype::F32)]
        dtype: Dtype,
        /// Folder that keeps features of backbones, as `features.folder` of a training
        #[arg(long, value_name = "DIR")]
        features: Option<PathBuf>,
        /// Print JSON: an object, or a list of them for several checkpoints
        #[arg(long, conflicts_with = "markdown")]
        json: bool,
        /// Print a Markdown table; what several checkpoints get anyway
        #[arg(long)]
        markdown: bool,
    },
    /// What the monitor would have said of a run, from a file of its answers
    MonitorReplay {
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
    },
    /// Put a fresh reward head on a language model
    InitHead {
        /// Model folder
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Seed of the head's weights
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Kind of head
        #[arg(long, value_enum, default_value_t = Head::Inform)]
        head: Head,
        /// Dimension of the latent
        #[arg(long, default_value_t = 128)]
        latent_dim: usize,
        /// From latent to reward
        #[arg(long, value_enum, default_value_t = Decode::Linear)]
        decode: Decode,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Head {
    Inform,
    Standard,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Decode {
    Linear,
    Gated,
}

fn main() -> ExitCode {
    inform::allocator::keep_freed_memory();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Fit { config, data, output } => {
            let mut config = FitConfig::read(&config)?;
            if !data.is_empty() {
                config.data.files = data.into_iter().map(WeightedFile::from).collect();
            }
            if let Some(output) = output {
                config.output = output;
            }
            let report = fit(&config)?;
            println!("{}", serde_json::to_string_pretty(&report)?);
            Ok(())
        }
        Command::Eval {
            model,
            data,
            held_out,
            drop_bad_lines,
            max_tokens,
            threads,
            dtype,
            features,
            json,
            markdown,
        } => {
            let dtype = match dtype {
                Dtype::F32 => Precision::F32,
                Dtype::Bf16 => Precision::Bf16,
            };
            let features = FeatureConfig { folder: features, dtype };
            let bad_lines = if drop_bad_lines { BadLines::Drop } else { BadLines::Refuse };
            let evaluate = |model: &PathBuf| {
                let found = evaluate_checkpoint(
                    model, &data, held_out, bad_lines, max_tokens, &features, threads,
                )
                .with_context(|| model.display().to_string())?;
                let name = model.file_name().unwrap_or(model.as_os_str());
                anyhow::Ok((name.to_string_lossy().into_owned(), found))
            };
            let found = model.iter().map(evaluate).collect::<anyhow::Result<Vec<_>>>()?;
            match found.as_slice() {
                [(_, one)] if json => println!("{}", serde_json::to_string_pretty(one)?),
                several if json => {
                    let several: Vec<_> = several
                        .iter()
                        .map(|(model, found)| serde_json::json!({"model": model, "evaluation": found}))
                        .collect();
                    println!("{}", serde_json::to_string_pretty(&several)?);
                }
                [(_, one)] if !markdown => print_evaluation(one),
                several => print!("{}", side_by_side(several)),
            }
            Ok(())
        }
        Command::MonitorReplay { file, baseline, model, config, output, plots } => {
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
        Command::InitHead { model, output, seed, head, latent_dim, decode } => {
            anyhow::ensure!(latent_dim > 0, "--latent-dim must be at least 1");
            let decode = match decode {
                Decode::Linear => DecodeKind::Linear,
                Decode::Gated => DecodeKind::Gated,
            };
            let head = match head {
                Head::Inform => HeadConfig::inform(latent_dim, decode),
                Head::Standard => HeadConfig::Standard,
            };
            Ok(init_head(&model, &output, &head, seed)?)
        }
    }
}

fn evaluate_checkpoint(
    model: &Path,
    data: &[PathBuf],
    held_out: bool,
    bad_lines: BadLines,
    max_tokens: Option<usize>,
    features: &FeatureConfig,
    threads: usize,
) -> anyhow::Result<Evaluation> {
    let checkpoint = Checkpoint::open(model)?;
    let mut judge = Judge::load(&checkpoint, features, threads)?;
    let record = model.join(TRAINING_FILE);
    let record: Option<TrainingRecord> = if record.exists() {
        let text = std::fs::read(&record).with_context(|| record.display().to_string())?;
        Some(serde_json::from_slice(&text).with_context(|| record.display().to_string())?)
    } else {
        None
    };
    let pairs = if held_out {
        let record = record.as_ref().with_context(|| {
            format!("{}: no {TRAINING_FILE}, which says what was held out", model.display())
        })?;
        record.held_out(data)?
    } else {
        let (pairs, bad) = read_pairs(data, bad_lines)?;
        name_left_out(&bad);
        pairs
    };
    let limit = checkpoint.encoder.limit();
    let trained = record.map(|record| record.config.data.max_tokens);
    let max_tokens = max_tokens.or(trained).unwrap_or(limit).min(limit);
    let (pairs, dropped) = {
        let limits = PairLimits { max_tokens, deduplicate: false };
        encode_pairs(&checkpoint.encoder, &pairs, limits)?
    };
    name_left_out(&dropped.pairs);
    eprintln!("{}: {} pairs, dropped: {dropped}", model.display(), pairs.len());
    Evaluation::of(&mut judge, &pairs)
}

fn print_evaluation(found: &Evaluation) {
    let line = |name: &str, accuracy: &PairAccuracy| {
        let PairAccuracy { pairs, correct, accuracy, interval: (low, high), .. } = accuracy;
        if *pairs > 0 {
            println!(
                "{name}{correct} of {pairs} pairs = {accuracy:.4}, 95 % interval {low:.4} to {high:.4}"
            );
        }
    };
    line("", &found.all);
    for (name, accuracy) in &found.subsets {
        line(&format!("{name}: "), accuracy);
    }
    line("chosen shorter: ", &found.shorter_chosen);
    line("chosen longer: ", &found.longer_chosen);
    println!(
        "mean margin {:.4}, rewards {:.4} +- {:.4}, calibration error {:.4}",
        found.all.margin_mean, found.all.reward_mean, found.all.reward_std, found.calibration_error
    );
}
