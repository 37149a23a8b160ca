//! `trainer init-head`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use inform::checkpoint::{DecodeKind, HeadConfig};
use inform::train::init_head;

#[derive(Debug, Args)]
pub(crate) struct InitHeadArgs {
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

pub(crate) fn run(args: InitHeadArgs) -> anyhow::Result<()> {
    let InitHeadArgs { model, output, seed, head, latent_dim, decode } = args;
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
