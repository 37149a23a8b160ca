//! `trainer best-of-n`: the cheapest optimiser against a reward model. The best of n samples by a proxy is what a policy
//! would become that follows it so far; a gold model says what that is worth.

mod estimate;
mod report;
mod samples;
mod scores;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::checkpoint::Checkpoint;
use crate::monitor::{Assessment, BaselineSet, MonitorConfig, Sample};
use crate::train::data::{Response, data_files};
use crate::train::eval::Scoring;
use crate::train::features::Compute;
use estimate::Singles;
pub use estimate::{Estimate, best_of_n_kl, expected_best};
use report::ChosenSample;
pub use report::{BestOfNReport, BestOfNRow, ProxyReport, ScoredBy};
use samples::read_samples;
use scores::Scores;

/// Which samples are chosen by which models.
#[derive(Debug, Clone)]
pub struct BestOfN<'a> {
    /// Files with several responses to each prompt.
    pub samples: &'a [PathBuf],
    /// Checkpoints by which the best is chosen.
    pub proxies: &'a [PathBuf],
    /// Checkpoint that says what the chosen are worth.
    pub gold: &'a Path,
    /// Numbers of samples to choose from.
    pub n: &'a [usize],
    /// SFT answers that the chosen are compared with, instead of the checkpoints' baselines.
    pub baseline: Option<&'a Path>,
    /// Where and how samples are scored.
    pub compute: Compute,
}

impl BestOfN<'_> {
    /// Scores all samples once by each model, and says what the best of n are by each proxy.
    ///
    /// # Errors
    /// A checkpoint, file or line that cannot be read, a prompt with fewer samples than the greatest n, a sample that is too
    /// long or whose reward is not finite: names the file and the line. Two proxies of one name.
    pub fn run(&self) -> anyhow::Result<BestOfNReport> {
        let n: BTreeSet<usize> = self.n.iter().copied().collect();
        ensure!(!n.contains(&0), "--n: must be at least 1");
        let most = *n.last().context("--n: needs a number")?;
        let prompts = read_samples(self.samples, most)?;
        let open = |model: &Path, own_baseline: bool| {
            let open =
                if own_baseline { Checkpoint::open } else { Checkpoint::open_without_baseline };
            open(model).with_context(|| model.display().to_string())
        };
        // All are opened before the first one scores: what is wrong with the last should not take hours to be known.
        let gold = open(self.gold, false)?;
        let mut proxies: Vec<Checkpoint> = Vec::with_capacity(self.proxies.len());
        for model in self.proxies {
            let proxy = open(model, self.baseline.is_none())?;
            ensure!(
                proxies.iter().all(|other| other.name != proxy.name),
                "--proxy: two checkpoints are called {}",
                proxy.name
            );
            proxies.push(proxy);
        }
        let count: usize = prompts.iter().map(Vec::len).sum();
        eprintln!("{count} samples of {} prompts", prompts.len());
        let load = |checkpoint| Scoring::load(checkpoint, &self.compute);
        let rewards = Scores::of(&mut load(&gold)?, &prompts)?.rewards;
        eprintln!("{}, gold: scored", gold.name);
        let singles = Singles::of(&rewards);
        let mut report = BestOfNReport {
            data: data_files(self.samples)?,
            prompts: prompts.len(),
            samples: count,
            dtype: self.compute.dtype(),
            gold: ScoredBy::of(&gold, &singles),
            proxies: Vec::with_capacity(proxies.len()),
            chosen: Vec::new(),
        };
        let worth = Worth { prompts: &prompts, gold: &rewards, gold_singles: &singles };
        for proxy in &proxies {
            let mut scoring = load(proxy)?;
            let scores = Scores::of(&mut scoring, &prompts)?;
            let config = MonitorConfig::default();
            let (baseline, note) = match scoring.compared_with(self.baseline, &config)? {
                Ok(baseline) => (Some(baseline), None),
                Err(reason) => (None, Some(format!("no statistics of latents: {reason}"))),
            };
            eprintln!("{}: scored", proxy.name);
            let singles = Singles::of(&scores.rewards);
            let mut rows = Vec::with_capacity(n.len());
            for &n in &n {
                let (mut row, chosen) = worth.best_of(n, &scores.rewards, &singles);
                let assess = |(samples, baseline): (&Vec<Vec<Sample>>, &BaselineSet)| {
                    let own = samples.iter().zip(&chosen);
                    let samples: Vec<Sample> = own.map(|(own, &at)| own[at].clone()).collect();
                    Assessment::of(&samples, baseline, &config)
                };
                row.statistics = scores.samples.as_ref().zip(baseline.as_ref()).map(assess);
                rows.push(row);
                let chosen = worth.chosen(&scores.rewards, &chosen);
                report.chosen.push((proxy.name.clone(), n, chosen));
            }
            report.proxies.push(ProxyReport {
                by: ScoredBy::of(proxy, &singles),
                baseline_samples: baseline.as_ref().map(BaselineSet::len),
                note,
                rows,
            });
        }
        Ok(report)
    }
}

/// The samples, and what they are worth: a list a prompt.
struct Worth<'a> {
    prompts: &'a [Vec<Response>],
    gold: &'a [Vec<f64>],
    gold_singles: &'a Singles,
}

impl Worth<'_> {
    /// The best of `n` by a proxy's rewards: what is expected of it, without statistics, and which sample of each prompt is
    /// the best of its first `n`.
    fn best_of(&self, n: usize, proxy: &[Vec<f64>], singles: &Singles) -> (BestOfNRow, Vec<usize>) {
        let expected = |values: &[Vec<f64>]| -> Vec<f64> {
            let each = proxy.iter().zip(values);
            each.filter_map(|(proxy, values)| expected_best(proxy, values, n)).collect()
        };
        let row = BestOfNRow {
            n,
            kl: best_of_n_kl(n),
            proxy: singles.estimate(&expected(proxy)),
            gold: self.gold_singles.estimate(&expected(self.gold)),
            statistics: None,
        };
        (row, proxy.iter().map(|own| best_of_first(own, n)).collect())
    }

    /// The samples at these places of their prompts.
    fn chosen(&self, proxy: &[Vec<f64>], places: &[usize]) -> Vec<ChosenSample> {
        let choice = |(prompt, &at): (usize, &usize)| {
            let response = &self.prompts[prompt][at];
            ChosenSample {
                messages: response.messages().to_vec(),
                reward: proxy[prompt][at],
                gold: self.gold[prompt][at],
                file: response.origin.file.display().to_string(),
                line: response.origin.line,
            }
        };
        places.iter().enumerate().map(choice).collect()
    }
}

/// The first of the greatest rewards among the first `n`.
fn best_of_first(rewards: &[f64], n: usize) -> usize {
    let mut best = 0;
    for (at, reward) in rewards.iter().enumerate().take(n) {
        if *reward > rewards[best] {
            best = at;
        }
    }
    best
}
