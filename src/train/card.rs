//! The model card that goes with a checkpoint.

use std::fmt::Write;

use super::config::WeightedFile;
use super::fit::{Finished, TrainingRecord};

/// Writes the card as Markdown.
///
/// # Errors
/// None in practice: writing to a string.
pub(super) fn write(
    record: &TrainingRecord,
    finished: &Finished,
) -> Result<String, std::fmt::Error> {
    let TrainingRecord { config, data, split, report } = record;
    let mut card = String::new();
    let title = if config.card.title.is_empty() { "Reward model" } else { &config.card.title };
    writeln!(card, "# {title}\n")?;
    if !config.card.notes.is_empty() {
        writeln!(card, "{}\n", config.card.notes.trim())?;
    }
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| Head | `{}` |", serde_json::to_string(&config.head).unwrap_or_default())?;
    writeln!(card, "| Parameters | {} |", report.parameters)?;
    writeln!(card, "| Weights | `{}` |", finished.weights)?;
    for (file, weighted) in data.iter().zip(&config.data.files) {
        let WeightedFile { weight, .. } = weighted;
        let weight = if *weight == 1.0 { String::new() } else { format!(", weight {weight}") };
        writeln!(card, "| Data | `{}`, SHA-256 `{}`{weight} |", file.name, file.sha256)?;
    }
    writeln!(
        card,
        "| Trained on | {} pairs, {} steps (dropped: {}) |",
        report.train_pairs, report.steps, report.train_dropped
    )?;
    if report.bad_lines > 0 {
        writeln!(card, "| Left out | {} lines that are no pairs |", report.bad_lines)?;
    }
    if report.label_noise_pairs > 0 {
        let count = report.label_noise_pairs;
        writeln!(card, "| Label noise | the answers of {count} training pairs were exchanged |")?;
    }
    writeln!(
        card,
        "| Held out | {} pairs, split by prompt with seed {} (dropped: {}) |",
        report.held_out_pairs, split.seed, report.held_out_dropped
    )?;
    if let Some(accuracy) = &finished.accuracy {
        writeln!(
            card,
            "| Held-out pair accuracy | {} of {} = {:.4}, 95 % interval {:.4} to {:.4} |",
            accuracy.correct,
            accuracy.pairs,
            accuracy.accuracy,
            accuracy.interval.0,
            accuracy.interval.1
        )?;
    }
    if let Some(baseline) = &finished.baseline {
        writeln!(card, "| Baseline latents | {}, {} |", baseline.len(), baseline.source)?;
    }
    writeln!(card, "\nLoss over the epochs, while training:\n")?;
    writeln!(card, "| epoch | loss | accuracy | KL (nats) |\n|---|---|---|---|")?;
    for (epoch, means) in report.epochs.iter().enumerate() {
        let (loss, accuracy, kl) = (means.loss, means.accuracy, means.kl);
        writeln!(card, "| {} | {loss:.4} | {accuracy:.4} | {kl:.3} |", epoch + 1)?;
    }
    writeln!(
        card,
        "\nEvery setting stands in `training.json`. `trainer eval --model DIR --held-out"
    )?;
    writeln!(card, "--data FILE` scores the held-out pairs again.")?;
    Ok(card)
}
