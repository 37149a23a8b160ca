//! `trainer merge`.

use std::path::PathBuf;

use clap::Args;
use inform::checkpoint::WeightType;
use inform::train::{MergeSettings, merge};

use crate::args::StoredAs;

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
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
}

pub(crate) fn run(args: MergeArgs) -> anyhow::Result<()> {
    let MergeArgs { model, weights, output, weight_type } = args;
    let record = merge(&MergeSettings {
        models: &model,
        weights: &weights,
        output: &output,
        weight_type: weight_type.map(WeightType::from),
    })?;
    println!("{}", serde_json::to_string_pretty(&record)?);
    Ok(())
}
