//! The trainer's command line.

mod computing;
#[cfg(feature = "judge")]
mod judge;
mod writing;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use inform::checkpoint::{Checkpoint, DecodeKind, HeadConfig, WeightType};
use inform::config::ServerConfig;
use inform::replay::Replay;
use inform::train::{
    BadLines, BaselineSettings, BestOfN, Compute, EvaluationSettings, ExportSettings, FitConfig,
    MergeSettings, PairEvaluation, SweepConfig, WeightedFile, export, fit, init_head,
    make_baseline, merge, open_with_latents, side_by_side, sweep,
};

use computing::Computing;
use writing::{Sampled, Writing};

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
        /// Seed instead of the settings' own
        #[arg(long)]
        seed: Option<u64>,
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
        #[command(flatten)]
        computing: Computing,
        /// Folder that keeps features of backbones, as `features.folder` of a training
        #[arg(long, value_name = "DIR")]
        features: Option<PathBuf>,
        /// Folder for plots of calibration, margins and KL divergence, SVG; several checkpoints have a folder each in it
        #[arg(long, value_name = "DIR")]
        plots: Option<PathBuf>,
        /// Print JSON: an object, or a list of them for several checkpoints
        #[arg(long, conflicts_with = "markdown")]
        json: bool,
        /// Print a Markdown table; what several checkpoints get anyway
        #[arg(long)]
        markdown: bool,
    },
    /// Train every setting of a grid, and compare what comes of it; runs that are complete are kept
    Sweep {
        /// Settings of the sweep, TOML
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Data files instead of the base's own
        #[arg(long, value_name = "FILE", num_args = 1..)]
        data: Vec<PathBuf>,
        /// Output folder instead of the settings' own
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
    /// Let a language model answer prompts; a run that was stopped goes on where it was
    Sample {
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
        writing: Writing,
    },
    /// Put SFT answers into a checkpoint as the baseline that its runs are compared with
    Baseline {
        /// Checkpoint folder; its weights are not touched
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// SFT answers, one a line, JSONL or JSONL.gz; with --sample-from the file where they are kept
        #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
        data: Vec<PathBuf>,
        #[command(flatten)]
        sampled: Sampled,
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
        computing: Computing,
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
    /// Proxy and gold reward of the best of n samples, from a file of samples
    BestOfN {
        /// Several responses to each prompt: JSONL, JSONL.gz or Parquet; with --sample-from the file where they are kept
        #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
        samples: Vec<PathBuf>,
        #[command(flatten)]
        sampled: Sampled,
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
        computing: Computing,
        /// Folder for the table, the same as JSON, and the chosen samples
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Folder for the plots, SVG
        #[arg(long, value_name = "DIR")]
        plots: Option<PathBuf>,
        /// Print JSON instead of Markdown
        #[arg(long)]
        json: bool,
    },
    /// Have a language model judge answers
    #[cfg(feature = "judge")]
    Judge {
        #[command(subcommand)]
        command: judge::JudgeCommand,
    },
    /// Put a fresh reward head on a language model
    InitHead {
        /// Model: a folder, a GGUF file, or owner/name of a hub
        #[arg(long, value_name = "MODEL")]
        model: PathBuf,
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Seed of the head's weights
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Kind of head
        #[arg(long, value_enum, default_value_t = HeadChoice::Inform)]
        head: HeadChoice,
        /// Dimension of the latent
        #[arg(long, default_value_t = 128)]
        latent_dim: usize,
        /// From latent to reward
        #[arg(long, value_enum, default_value_t = Decode::Linear)]
        decode: Decode,
    },
    /// Average the weights of checkpoints that were trained from the same start (WARM)
    Merge {
        /// Checkpoints: folders, GGUF files, or owner/name of a hub
        #[arg(long, value_name = "MODEL", num_args = 1.., required = true)]
        model: Vec<PathBuf>,
        /// Weight of each in the average, above 0, whatever their sum [default: equal ones]
        #[arg(long, value_name = "NUMBER", num_args = 1..)]
        weights: Vec<f64>,
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Type in which weights are stored [default: that of the checkpoints, f32 where they differ]
        #[arg(long, value_enum)]
        weight_type: Option<StoredAs>,
    },
    /// Write a checkpoint as a folder that transformers loads
    Export {
        /// Checkpoint: a folder, a GGUF file, or owner/name of a hub
        #[arg(long, value_name = "MODEL")]
        model: PathBuf,
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Make one row of an InfoRM head with a linear decode: rewards are kept, latents are lost
        #[arg(long)]
        fold_head: bool,
        /// Type in which weights are stored [default: that of the checkpoint, and f32 for a folded head]
        #[arg(long, value_enum)]
        weight_type: Option<StoredAs>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HeadChoice {
    Inform,
    Standard,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Decode {
    Linear,
    Gated,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StoredAs {
    F32,
    F16,
    Bf16,
}

impl From<StoredAs> for WeightType {
    fn from(stored_as: StoredAs) -> Self {
        match stored_as {
            StoredAs::F32 => Self::F32,
            StoredAs::F16 => Self::F16,
            StoredAs::Bf16 => Self::Bf16,
        }
    }
}

fn bad_lines(drop: bool) -> BadLines {
    if drop { BadLines::Drop } else { BadLines::Refuse }
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
        Command::Fit { config, data, output, seed } => {
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
        Command::Eval {
            model,
            data,
            held_out,
            drop_bad_lines,
            max_tokens,
            computing,
            features,
            plots,
            json,
            markdown,
        } => {
            let settings = EvaluationSettings {
                data,
                held_out,
                bad_lines: bad_lines(drop_bad_lines),
                max_tokens,
                features,
                compute: computing.into(),
            };
            let evaluate = |model: &PathBuf| {
                let found =
                    settings.evaluate(model).with_context(|| model.display().to_string())?;
                let name = model.file_name().unwrap_or(model.as_os_str());
                anyhow::Ok((name.to_string_lossy().into_owned(), found))
            };
            let found = model.iter().map(evaluate).collect::<anyhow::Result<Vec<_>>>()?;
            if let Some(folder) = plots {
                plot(&found, &folder)?;
            }
            match found.as_slice() {
                [(_, one)] if json => println!("{}", serde_json::to_string_pretty(one)?),
                several if json => {
                    let several: Vec<_> = several
                        .iter()
                        .map(|(model, found)| serde_json::json!({"model": model, "evaluation": found}))
                        .collect();
                    println!("{}", serde_json::to_string_pretty(&several)?);
                }
                [(_, one)] if !markdown => print!("{one}"),
                several => print!("{}", side_by_side(several)),
            }
            Ok(())
        }
        Command::Sweep { config, data, output } => {
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
        Command::Sample { model, prompts, output, samples, seed, writing } => {
            let report = writing.sample(model, &prompts, &output, samples, seed)?;
            println!("{}", serde_json::to_string_pretty(&report)?);
            Ok(())
        }
        Command::Baseline { model, data, sampled, samples, seed, drop_bad_lines, computing } => {
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
        Command::BestOfN {
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
        } => {
            let most = n.iter().copied().max().unwrap_or(1);
            let compute = Compute::from(computing);
            let check = || {
                compute.check()?;
                let open = |model: &PathBuf| {
                    Checkpoint::open_without_baseline(model)
                        .with_context(|| model.display().to_string())
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
        #[cfg(feature = "judge")]
        Command::Judge { command } => judge::run(command),
        Command::InitHead { model, output, seed, head, latent_dim, decode } => {
            anyhow::ensure!(latent_dim > 0, "--latent-dim must be at least 1");
            let decode = match decode {
                Decode::Linear => DecodeKind::Linear,
                Decode::Gated => DecodeKind::Gated,
            };
            let head = match head {
                HeadChoice::Inform => HeadConfig::inform(latent_dim, decode),
                HeadChoice::Standard => HeadConfig::standard(),
            };
            Ok(init_head(&model, &output, &head, seed)?)
        }
        Command::Merge { model, weights, output, weight_type } => {
            let record = merge(&MergeSettings {
                models: &model,
                weights: &weights,
                output: &output,
                weight_type: weight_type.map(WeightType::from),
            })?;
            println!("{}", serde_json::to_string_pretty(&record)?);
            Ok(())
        }
        Command::Export { model, output, fold_head, weight_type } => export(&ExportSettings {
            model: &model,
            output: &output,
            fold_head,
            weight_type: weight_type.map(WeightType::from),
        }),
    }
}

/// Draws evaluations, each in a folder of its checkpoint's name where there are several.
fn plot(found: &[(String, PairEvaluation)], folder: &Path) -> anyhow::Result<()> {
    if let [(model, one)] = found {
        return one.plot(model, folder);
    }
    for (number, (model, evaluation)) in found.iter().enumerate() {
        let is_known = found[..number].iter().any(|(other, _)| other == model);
        anyhow::ensure!(!is_known, "--plots: two checkpoints are called {model}");
        evaluation.plot(model, &folder.join(model))?;
    }
    Ok(())
}
