//! `trainer export`.

use std::path::PathBuf;

use clap::Args;
use inform::checkpoint::WeightType;
use inform::train::{ExportSettings, export};

use crate::args::StoredAs;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
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
}

pub(crate) fn run(args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { model, output, fold_head, weight_type } = args;
    export(&ExportSettings {
        model: &model,
        output: &output,
        fold_head,
        weight_type: weight_type.map(WeightType::from),
    })
}
