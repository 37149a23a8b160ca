//! The trainer's command line.

mod args;
mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    Fit(commands::fit::FitArgs),
    /// Pair accuracy of checkpoints with 95 % intervals: overall, by subset, by which answer is longer
    Eval(commands::eval::EvalArgs),
    /// Train every setting of a grid, and compare what comes of it; runs that are complete are kept
    Sweep(commands::sweep::SweepArgs),
    /// Let a language model answer prompts; a run that was stopped goes on where it was
    Sample(commands::sample::SampleArgs),
    /// Put SFT answers into a checkpoint as the baseline that its runs are compared with
    Baseline(commands::baseline::BaselineArgs),
    /// What the monitor would have said of a run, from a file of its answers
    MonitorReplay(commands::monitor_replay::MonitorReplayArgs),
    /// Proxy and gold reward of the best of n samples, from a file of samples
    BestOfN(commands::best_of_n::BestOfNArgs),
    /// Have a language model judge answers
    #[cfg(feature = "judge")]
    Judge {
        #[command(subcommand)]
        command: commands::judge::JudgeCommand,
    },
    /// Put a fresh reward head on a language model
    InitHead(commands::init_head::InitHeadArgs),
    /// Average the weights of checkpoints that were trained from the same start (WARM)
    Merge(commands::merge::MergeArgs),
    /// Write a checkpoint as a folder that transformers loads
    Export(commands::export::ExportArgs),
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
        Command::Fit(args) => commands::fit::run(args),
        Command::Eval(args) => commands::eval::run(args),
        Command::Sweep(args) => commands::sweep::run(args),
        Command::Sample(args) => commands::sample::run(args),
        Command::Baseline(args) => commands::baseline::run(args),
        Command::MonitorReplay(args) => commands::monitor_replay::run(args),
        Command::BestOfN(args) => commands::best_of_n::run(args),
        #[cfg(feature = "judge")]
        Command::Judge { command } => commands::judge::run(command),
        Command::InitHead(args) => commands::init_head::run(args),
        Command::Merge(args) => commands::merge::run(args),
        Command::Export(args) => commands::export::run(args),
    }
}
