//! The model card that goes with a checkpoint.

use std::fmt::{Error, Write};

use super::config::WeightedFile;
use super::record::{Finished, TrainingRecord};
use crate::monitor::statistics::csi::EpsMode;
use crate::monitor::{CsiCalibration, Expected};
use crate::plots::short;
use crate::train::accuracy::{BaselineReport, LatentDiagnostics};

/// Dimensions whose KL divergence the card gives.
const DIMENSIONS: usize = 8;
/// Comments around the part on the baseline, which `trainer baseline` exchanges.
const BASELINE_BEGIN: &str = "<!-- baseline -->";
const BASELINE_END: &str = "<!-- end of baseline -->";

/// Writes the card as Markdown.
///
/// # Errors
/// None in practice: writing to a string.
pub(in crate::train) fn write(
    record: &TrainingRecord,
    finished: &Finished,
) -> Result<String, Error> {
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
    writeln!(card, "| Loss | `{}` |", serde_json::to_string(&config.loss).unwrap_or_default())?;
    writeln!(
        card,
        "| Optimiser | AdamW `{}` |",
        serde_json::to_string(&config.optimiser).unwrap_or_default()
    )?;
    writeln!(
        card,
        "| Schedule | `{}` |",
        serde_json::to_string(&config.schedule).unwrap_or_default()
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
    if let Some(accuracy) = &report.held_out {
        writeln!(
            card,
            "| Held-out pair accuracy | {} of {} = {:.4}, 95 % interval {:.4} to {:.4} |",
            accuracy.correct,
            accuracy.pairs,
            accuracy.accuracy,
            accuracy.interval.0,
            accuracy.interval.1
        )?;
        writeln!(
            card,
            "| Held-out rewards | mean {:.4}, standard deviation {:.4}; mean margin {:.4} |",
            accuracy.reward_mean, accuracy.reward_std, accuracy.margin_mean
        )?;
    }
    if let Some(error) = report.calibration_error {
        let meaning = "of the probability that the margin gives to the better answer";
        writeln!(card, "| Calibration error | {error:.4}, {meaning} |")?;
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
    if let Some(latents) = &report.latents {
        write_latents(&mut card, latents)?;
    }
    if let Some(baseline) = &finished.report {
        card = with_baseline(Some(&card), baseline)?;
    }
    Ok(card)
}

fn write_latents(card: &mut String, latents: &LatentDiagnostics) -> Result<(), Error> {
    let shown = latents.largest().into_iter().take(DIMENSIONS);
    writeln!(card, "\n## Latent\n\nOf the held-out pairs: {latents}.")?;
    writeln!(card, "A unit is active where its posterior mean varies by more than 0.01 (Burda et")?;
    writeln!(
        card,
        "al. 2016). The dimensions with the largest KL divergence; all are in `training.json`:"
    )?;
    writeln!(card, "\n| dimension | KL (nats) | variance of the posterior mean |\n|---|---|---|")?;
    for (dimension, kl) in shown {
        writeln!(card, "| {dimension} | {kl:.3} | {:.3} |", latents.mean_variance[dimension])?;
    }
    Ok(())
}

/// A card with the part on this baseline in place of an earlier one, or at its end. Whatever else it says stays: it may
/// not be of this program.
///
/// # Errors
/// None in practice: writing to a string.
pub(in crate::train) fn with_baseline(
    card: Option<&str>,
    report: &BaselineReport,
) -> Result<String, Error> {
    let part = baseline(report)?;
    let Some(card) = card else { return Ok(format!("# Reward model\n\n{part}\n")) };
    let earlier = card.find(BASELINE_BEGIN).and_then(|begin| {
        let end = begin + card[begin..].find(BASELINE_END)? + BASELINE_END.len();
        Some((&card[..begin], &card[end..]))
    });
    Ok(match earlier {
        Some((before, after)) => format!("{before}{part}{after}"),
        None => format!("{}\n\n{part}\n", card.trim_end()),
    })
}

/// The part on the baseline, between its comments.
fn baseline(report: &BaselineReport) -> Result<String, Error> {
    let BaselineReport { data, dtype, calibration } = report;
    let mut part = format!("{BASELINE_BEGIN}\n## SFT baseline\n\n");
    writeln!(part, "What the monitor compares the answers of a run with.\n\n| | |\n|---|---|")?;
    writeln!(part, "| Latents | {}, scored in {} |", calibration.source, dtype.name())?;
    for file in data {
        writeln!(part, "| Data | `{}`, SHA-256 `{}` |", file.name, file.sha256)?;
    }
    writeln!(part, "| Weights | `{}` |", calibration.weights)?;
    if let Some(rewards) = calibration.rewards {
        let (mean, std) = (short(rewards.mean), short(rewards.std));
        write!(part, "| Rewards | mean {mean}, standard deviation {std}")?;
        let saturated = rewards.saturated.map(short);
        writeln!(part, "{} |", saturated.map_or(String::new(), |at| format!("; 1 % exceed {at}")))?;
    }
    if let Some(found) = calibration.k_distances {
        let [low, median, high] = [found.p05, found.p50, found.p95].map(short);
        let k = calibration.min_samples;
        writeln!(
            part,
            "| Distance within which {k} latents lie, itself included | median {median}, 90 % from {low} to {high} |"
        )?;
    }
    let optional = [
        (
            calibration.knn_distance,
            format!("Distance to the k-th nearest of the others, k = {}", calibration.neighbours),
        ),
        (calibration.mahalanobis_mean, "Mahalanobis distance, mean".to_owned()),
        (
            calibration.mop_limit,
            "Mahalanobis distance beyond which an answer is an outlier".to_owned(),
        ),
    ];
    for (value, name) in optional {
        if let Some(value) = value {
            writeln!(part, "| {name} | {} |", short(value))?;
        }
    }
    let window = calibration.window;
    writeln!(
        part,
        "\nWhat windows of {window} fresh answers of the SFT model show, by the monitor's nulls;"
    )?;
    writeln!(
        part,
        "`calibration.json` has the same. A server derives its own, with its own settings.\n"
    )?;
    writeln!(part, "| statistic | mean | median | 95 % | 99 % |\n|---|---|---|---|---|")?;
    let mut row = |name: &str, expected: Option<Expected>| match expected {
        None => writeln!(part, "| {name} | not known: too few latents, or no radius | | | |"),
        Some(Expected { mean, p50, p95, p99 }) => {
            let [mean, p50, p95, p99] = [mean, p50, p95, p99].map(short);
            writeln!(part, "| {name} | {mean} | {p50} | {p95} | {p99} |")
        }
    };
    for CsiCalibration { eps_mode, eps, per_sample } in &calibration.csi {
        let mode = match eps_mode {
            EpsMode::Fixed => "fixed",
            EpsMode::Calibrated => "calibrated",
        };
        let eps = eps.map_or("none".to_owned(), short);
        row(&format!("CSI per sample, `eps` {eps} ({mode})"), *per_sample)?;
    }
    row("energy distance", calibration.energy)?;
    if let Some(share) = calibration.mop_p95 {
        writeln!(part, "| share of outliers (MOP) | | | {} | |", short(share))?;
    }
    part.push_str(BASELINE_END);
    Ok(part)
}
