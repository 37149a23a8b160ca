//! `trainer eval`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use inform::train::{EvaluationSettings, PairEvaluation, side_by_side};

use crate::args::{ComputeArgs, bad_lines};

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
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
    computing: ComputeArgs,
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
}

pub(crate) fn run(args: EvalArgs) -> anyhow::Result<()> {
    let EvalArgs {
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
    } = args;
    let settings = EvaluationSettings {
        data,
        held_out,
        bad_lines: bad_lines(drop_bad_lines),
        max_tokens,
        features,
        compute: computing.into(),
    };
    let evaluate = |model: &PathBuf| {
        let found = settings.evaluate(model).with_context(|| model.display().to_string())?;
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
