//! `trainer sweep`: the same training over a grid of settings, with a table and a plot of what came of it.

mod grid;
mod report;

use anyhow::{Context, ensure};

use crate::train::data::{DataFile, data_files};
use crate::train::fit::{FitReport, TrainingRecord, fit};
use grid::GridRun;
pub use grid::{Setting, SweepConfig};
pub use report::{FailedRun, RunSummary, SettingSummary, Spread, SweepReport};

/// Trains every setting of the grid that is not there yet, one after the other, and writes `sweep.md`, `sweep.json` and
/// `sweep.svg` beside the checkpoints. A run that fails is named in the report; the others go on.
///
/// # Errors
/// Settings that contradict each other, a checkpoint of other settings or data where a run's is to be, or a folder that
/// cannot be written.
pub fn sweep(config: &SweepConfig) -> anyhow::Result<SweepReport> {
    let files: Vec<_> = config.fit.data.files.iter().map(|file| file.path.clone()).collect();
    let (runs, data) = (config.runs()?, data_files(&files)?);
    // Whatever is in the way is better known before the first run than after the last.
    let known = runs.iter().map(|run| completed(run, &data)).collect::<anyhow::Result<Vec<_>>>()?;
    let (count, mut report) = (runs.len(), SweepReport::default());
    for (number, (run, known)) in runs.into_iter().zip(known).enumerate() {
        let number = number + 1;
        let finished = match known {
            Some(finished) => {
                eprintln!("run {number} of {count}: {} is there", run.name);
                finished
            }
            None => {
                eprintln!("run {number} of {count}: {}", run.name);
                match fit(&run.config) {
                    Ok(finished) => finished,
                    Err(error) => {
                        let error = format!("{error:#}");
                        eprintln!("{}: {error}", run.name);
                        report.failed.push(FailedRun { name: run.name, error });
                        continue;
                    }
                }
            }
        };
        report.runs.push(RunSummary::of(&run, &finished));
    }
    report.summarise();
    report.write(&config.output)?;
    Ok(report)
}

/// What a run gave that is complete.
fn completed(run: &GridRun, data: &[DataFile]) -> anyhow::Result<Option<FitReport>> {
    let folder = &run.config.output;
    let record = TrainingRecord::read(folder)
        .with_context(|| format!("{}: delete it to train anew", folder.display()))?;
    let Some(record) = record else { return Ok(None) };
    ensure!(
        record.config.decisive() == run.config.decisive() && record.data == data,
        "{}: trained with other settings or data: delete it, or name another `output`",
        folder.display()
    );
    Ok(Some(record.report))
}
