//! What came of best-of-n: tables, JSON, the chosen samples and plots.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::estimate::{Estimate, Singles};
use crate::checkpoint::{Checkpoint, Message, replace_file};
use crate::monitor::Assessment;
use crate::ops::cpu::Precision;
use crate::plots::{Figure, FigurePanel, FigurePoint, Series, Size};
use crate::train::data::DataFile;

/// Files of the report, without their suffixes.
const NAME: &str = "best-of-n";
/// Folder of the chosen samples in the output folder.
const CHOSEN_FOLDER: &str = "chosen";

/// What came of best-of-n.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BestOfNReport {
    /// Names and SHA-256 of the files with the samples.
    pub data: Vec<DataFile>,
    /// Prompts.
    pub prompts: usize,
    /// Samples of all prompts.
    pub samples: usize,
    /// Precision of products that scored them.
    pub dtype: Precision,
    /// The model that says what the chosen are worth.
    pub gold: ScoredBy,
    /// The models by which they are chosen.
    pub proxies: Vec<ProxyReport>,
    /// The samples that the statistics are of, with proxy and n.
    #[serde(skip)]
    pub(super) chosen: Vec<(String, usize, Vec<ChosenSample>)>,
}

/// A checkpoint, and the rewards that it gives to single samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoredBy {
    /// What the checkpoint is called.
    pub model: String,
    /// Hash of its weights.
    pub weights: String,
    /// Mean reward of a sample, each prompt counting alike.
    pub reward_mean: f64,
    /// Standard deviation of the reward of a sample over all prompts.
    pub reward_std: f64,
}

/// What is chosen by a proxy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProxyReport {
    /// The proxy.
    #[serde(flatten)]
    pub by: ScoredBy,
    /// Latents that the chosen are compared with.
    pub baseline_samples: Option<usize>,
    /// Why there are no statistics.
    pub note: Option<String>,
    /// A row for each n, ascending.
    pub rows: Vec<BestOfNRow>,
}

/// The best of n by a proxy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BestOfNRow {
    /// Samples to choose from.
    pub n: usize,
    /// KL divergence from the policy, in nats.
    pub kl: f64,
    /// The proxy's reward, expected over all subsets of n samples.
    pub proxy: Estimate,
    /// The gold reward of the same.
    pub gold: Estimate,
    /// The monitor's statistics of the proxy's latents of the best among the first n samples of each prompt.
    pub statistics: Option<Assessment>,
}

/// A chosen sample. As JSON, a line that `trainer monitor-replay` and `trainer baseline` read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ChosenSample {
    pub(super) messages: Vec<Message>,
    /// The proxy's reward.
    pub(super) reward: f64,
    pub(super) gold: f64,
    pub(super) file: String,
    pub(super) line: usize,
}

impl ScoredBy {
    pub(super) fn of(checkpoint: &Checkpoint, singles: &Singles) -> Self {
        Self {
            model: checkpoint.name.clone(),
            weights: checkpoint.weights.clone(),
            reward_mean: singles.mean,
            reward_std: singles.std,
        }
    }

    /// An interval of rewards in standard deviations of single samples from their mean.
    fn standardised(&self, (low, high): (f64, f64)) -> Option<(f64, f64)> {
        let Self { reward_mean, reward_std, .. } = self;
        let of = |reward: f64| (reward - reward_mean) / reward_std;
        (*reward_std > 0.0).then(|| (of(low), of(high)))
    }
}

impl BestOfNReport {
    /// A table for each proxy: rewards with 95 % intervals, the gain in gold reward, the statistics.
    pub fn markdown(&self) -> String {
        let Self { prompts, samples, gold, .. } = self;
        let mut text = format!(
            "{samples} samples of {prompts} prompts; the gold reward is that of {}. In brackets 95 % intervals over prompts; \
             `std` is a reward in standard deviations of single samples, `gain` what the gold reward is more than for n = 1.\n",
            gold.model
        );
        for ProxyReport { by, note, rows, baseline_samples } in &self.proxies {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "\n## Best of n by {}\n\n\
                 | n | KL (nats) | proxy | std | gold | std | gain | CSI/n | energy | p | MOP |\n\
                 |---|---|---|---|---|---|---|---|---|---|---|\n",
                by.model
            );
            for BestOfNRow { n, kl, proxy, gold, statistics } in rows {
                let statistic = |value: fn(&Assessment) -> Option<f64>| {
                    number(statistics.as_ref().and_then(value))
                };
                let _ = writeln!(
                    text,
                    "| {n} | {kl:.3} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                    cell(proxy.mean, proxy.interval),
                    number(proxy.standardised),
                    cell(gold.mean, gold.interval),
                    number(gold.standardised),
                    cell(gold.gain, gold.gain_interval),
                    statistic(|found| found.statistics.csi_per_sample),
                    statistic(|found| found.statistics.energy),
                    statistic(|found| found.energy_p),
                    statistic(|found| found.statistics.mop),
                );
            }
            let best = rows.iter().max_by(|a, b| a.gold.mean.total_cmp(&b.gold.mean));
            if let Some(best) = best {
                let _ = writeln!(text, "\nThe gold reward is greatest at n = {}.", best.n);
            }
            if let Some(samples) = baseline_samples {
                let _ = writeln!(text, "The statistics are against {samples} SFT answers.");
            }
            if let Some(note) = note {
                let _ = writeln!(text, "{}: {note}.", by.model);
            }
        }
        text
    }

    /// Writes table, JSON and the chosen samples into a folder, which is made where it is missing.
    ///
    /// # Errors
    /// A folder or file that cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let chosen = folder.join(CHOSEN_FOLDER);
        std::fs::create_dir_all(&chosen).with_context(|| chosen.display().to_string())?;
        replace_file(&folder.join(format!("{NAME}.json")), &serde_json::to_vec_pretty(self)?)?;
        replace_file(&folder.join(format!("{NAME}.md")), self.markdown().as_bytes())?;
        for (proxy, n, samples) in &self.chosen {
            let mut lines = Vec::new();
            for sample in samples {
                serde_json::to_writer(&mut lines, sample)?;
                lines.push(b'\n');
            }
            // A hub's names have a slash in them.
            let name = format!("{}-n{n}.jsonl", proxy.replace('/', "--"));
            replace_file(&chosen.join(name), &lines)?;
        }
        Ok(())
    }

    /// Draws `best-of-n.svg`, and `best-of-n-statistics.svg` where there are any, into a folder, which is made where it is
    /// missing.
    ///
    /// # Errors
    /// A figure that cannot be drawn, a folder or file that cannot be written.
    pub fn plot(&self, folder: &Path) -> anyhow::Result<()> {
        self.rewards().draw(Size::CURVE)?.save(folder, NAME)?;
        if self.proxies.iter().flat_map(|proxy| &proxy.rows).any(|row| row.statistics.is_some()) {
            let size = Size { height: 640, ..Size::CURVE };
            self.statistics().draw(size)?.save(folder, &format!("{NAME}-statistics"))?;
        }
        Ok(())
    }

    /// Proxy and gold rewards against the KL divergence, standardised so that they share an axis.
    fn rewards(&self) -> Figure {
        let series = self.proxies.iter().flat_map(|proxy| {
            let own = |name: &str, by: &ScoredBy, of: fn(&BestOfNRow) -> &Estimate| {
                let points = proxy.rows.iter().filter_map(|row| {
                    let Estimate { standardised, interval, .. } = of(row);
                    let interval = interval.and_then(|interval| by.standardised(interval));
                    Some(FigurePoint { x: row.kl, y: (*standardised)?, interval })
                });
                Series { name: name.to_owned(), points: points.collect() }
            };
            let name = &proxy.by.model;
            [
                own(&format!("proxy {name}"), &proxy.by, |row| &row.proxy),
                own(&format!("gold, best by {name}"), &self.gold, |row| &row.gold),
            ]
        });
        Figure {
            title: "Best of n".to_owned(),
            note: format!(
                "Rewards in standard deviations of single samples, with 95 % intervals over {} prompts; gold is {}.",
                self.prompts, self.gold.model
            ),
            axis: KL_AXIS.to_owned(),
            panels: vec![FigurePanel {
                axis: "reward, standardised".to_owned(),
                series: series.collect(),
                shown: vec![0.0],
                ..FigurePanel::default()
            }],
            empty: "The rewards do not differ.".to_owned(),
            ..Figure::default()
        }
    }

    fn statistics(&self) -> Figure {
        let panel = |axis: &str, value: fn(&Assessment) -> Option<f64>| {
            let series = self.proxies.iter().map(|proxy| {
                let points = proxy.rows.iter().filter_map(|row| {
                    let y = row.statistics.as_ref().and_then(value)?;
                    Some(FigurePoint { x: row.kl, y, interval: None })
                });
                Series { name: proxy.by.model.clone(), points: points.collect() }
            });
            FigurePanel {
                axis: axis.to_owned(),
                series: series.filter(|series| !series.points.is_empty()).collect(),
                shown: vec![0.0],
                bounds: (0.0, f64::INFINITY),
                ..FigurePanel::default()
            }
        };
        Figure {
            title: "Latents of the best of n".to_owned(),
            note: "Against the SFT answers, by the proxy that chose them.".to_owned(),
            axis: KL_AXIS.to_owned(),
            panels: vec![
                panel("CSI per sample", |found| found.statistics.csi_per_sample),
                panel("energy distance", |found| found.statistics.energy),
                panel("MOP", |found| found.statistics.mop),
            ],
            empty: "Nothing could be computed.".to_owned(),
            ..Figure::default()
        }
    }
}

const KL_AXIS: &str = "KL divergence from the policy, nats";

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| format!("{value:.3}"))
}

fn cell(mean: f64, interval: Option<(f64, f64)>) -> String {
    match interval {
        Some((low, high)) => format!("{mean:.3} ({low:.3} to {high:.3})"),
        None => format!("{mean:.3}"),
    }
}
