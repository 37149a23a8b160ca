//! What the judged statistics are on windows of fresh answers of the SFT model: their nulls.
//!
//! | statistic | null | cost at M = 5,000, d = 128 |
//! |---|---|---|
//! | energy distance | its limit law, fitted to the baseline: [`EnergyNull`] | once 3 G multiply-adds |
//! | CSI per sample | parts of the baseline held out | for each class of window sizes at most 15 G, or 60 draws |
//! | MOP | exact: the flagged are beta-binomial | none: the distances of held-out latents are there |
//! | dispersion ratio | normal, with the baseline's own spread of squared distances | once 1 M |
//! | distinct ratio | its expectation among as many latents of the baseline | once 5,000 hashes |
//!
//! All of them count the sampling error of the baseline, which every window of a run shares: two
//! windows of `n` compared with the same `m` latents are correlated by `n / (n + m)` in what is linear
//! in the sample, and by its square in the energy distance ([`NullValues::shared`]).

mod csi;
mod energy;
pub(crate) mod tail;

use std::collections::HashMap;

use libm::lgamma;
use ndarray::{ArrayView2, Axis};
use parking_lot::Mutex;
use std::sync::Arc;

use crate::monitor::statistics::csi::CsiParameters;
use crate::monitor::statistics::gram::mean;
use csi::{CsiNull, held_out};
pub use energy::EnergyNull;
use tail::beta_binomial_tail;
pub(in crate::monitor) use tail::{bisect, normal_tail, normal_upper_quantile};

/// The quantile that is reported beside a value.
const QUANTILE: f64 = 0.95;
/// Answers of one prompt that are compared with one another, at most.
const MAX_GROUP: usize = 64;

/// The nulls of one baseline. Fitted on the thread that evaluates.
#[derive(Debug)]
pub struct Null {
    baseline: usize,
    energy: Option<EnergyNull>,
    /// Distance of each latent from a fit that lacks it, ascending.
    mahalanobis: Vec<f64>,
    /// Standard deviation of the squared distance from the mean over its mean.
    dispersion: Option<f64>,
    /// How often each latent stands there that stands there more than once.
    repeats: Vec<usize>,
    csi: Mutex<HashMap<usize, Option<Arc<CsiNull>>>>,
    parameters: CsiParameters,
}

/// What was measured on a window; absent where it was not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observed {
    /// Answers in the window.
    pub samples: usize,
    /// As many independent answers would tell as much, see [`Null::effective_samples`].
    pub effective_samples: f64,
    /// Energy distance from the baseline.
    pub energy: Option<f64>,
    /// CSI per sample.
    pub csi_per_sample: Option<f64>,
    /// Share of the answers beyond `mop_threshold`.
    pub mop: Option<f64>,
    /// Mahalanobis distance beyond which an answer is flagged.
    pub mop_threshold: Option<f64>,
    /// Trace of the window's covariance over that of the baseline's.
    pub dispersion_ratio: Option<f64>,
    /// Distinct answers over answers.
    pub distinct_ratio: Option<f64>,
}

/// A value beside its null.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// What was measured.
    pub value: f64,
    /// Mean of the null.
    pub mean: f64,
    /// The null's quantile 0.95, or 0.05 where small values are suspicious.
    pub quantile: f64,
    /// Probability of a value at least as suspicious under the null; absent where only the mean is
    /// known.
    pub p: Option<f64>,
}

/// The judged statistics of a window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NullValues {
    /// Answers in the window.
    pub samples: usize,
    /// Correlation of two windows of this size by the baseline that they share.
    pub shared: f64,
    /// Energy distance.
    pub energy: Option<Judged>,
    /// CSI per sample.
    pub csi: Option<Judged>,
    /// MOP.
    pub mop: Option<Judged>,
    /// Dispersion ratio; small values are suspicious.
    pub dispersion: Option<Judged>,
    /// Distinct ratio; small values are suspicious.
    pub distinct: Option<Judged>,
}

impl Null {
    /// Fits what does not depend on a window's size to the baseline's latents `[M, d]`, of which
    /// `held_out` are the Mahalanobis distances, each by a fit without it
    /// ([`Reference::held_out`](super::reference::Reference::held_out)); `parameters` have a fixed
    /// `eps`. A small or degenerate baseline lacks some of the nulls: fewer than 16 latents have none.
    pub fn fit(latents: ArrayView2<'_, f64>, held_out: &[f64], parameters: CsiParameters) -> Self {
        let enough = latents.nrows() >= energy::MIN_ROWS;
        let mut mahalanobis = if enough { held_out.to_vec() } else { Vec::new() };
        mahalanobis.retain(|distance| distance.is_finite());
        mahalanobis.sort_by(f64::total_cmp);
        Self {
            baseline: latents.nrows(),
            energy: EnergyNull::fit(latents),
            mahalanobis,
            dispersion: enough.then(|| relative_spread(latents)).flatten(),
            repeats: repeats(latents),
            csi: Mutex::default(),
            parameters,
        }
    }

    /// The law of the energy distance.
    pub fn energy(&self) -> Option<&EnergyNull> {
        self.energy.as_ref()
    }

    /// Mean of CSI per sample in windows of `samples` fresh answers, and its quantiles at `levels`. `latents` are those
    /// that the null was fitted to. `None` where there is no null.
    pub fn csi_quantiles<const N: usize>(
        &self,
        latents: ArrayView2<'_, f64>,
        samples: usize,
        levels: [f64; N],
    ) -> Option<(f64, [f64; N])> {
        let null = self.csi(latents, samples)?;
        Some((null.mean(), levels.map(|level| null.quantile(level, samples as f64))))
    }

    /// The number of independent answers that tell as much about the population as these `[n, d]`
    /// latents, where several answer the same prompt: `n` over Kish's design effect,
    ///
    /// `1 + sum over pairs i != j of the same prompt of (1 - |x_i - x_j| / mu) / n`,
    ///
    /// `mu` the mean distance of two latents of the baseline. It makes the mean of the energy
    /// distance under the null right. Answers without a prompt count as independent.
    pub fn effective_samples(&self, latents: ArrayView2<'_, f64>, prompts: &[Option<u64>]) -> f64 {
        let n = latents.nrows() as f64;
        let Some(energy) = &self.energy else { return n };
        let mut groups: HashMap<u64, Vec<usize>> = HashMap::new();
        for (row, prompt) in prompts.iter().enumerate().take(latents.nrows()) {
            if let Some(prompt) = prompt {
                groups.entry(*prompt).or_default().push(row);
            }
        }
        let mut excess = 0.0;
        // In the order of rows, so that the sum's bits do not depend on the map's order.
        let mut groups: Vec<_> = groups.into_values().filter(|rows| rows.len() > 1).collect();
        groups.sort_unstable();
        for rows in groups {
            let seen = &rows[..rows.len().min(MAX_GROUP)];
            let mut likeness = 0.0;
            for (i, &a) in seen.iter().enumerate() {
                for &b in &seen[..i] {
                    let apart =
                        super::gram::squared_distance(latents.row(a), latents.row(b)).sqrt();
                    likeness += 1.0 - apart / energy.mean_distance();
                }
            }
            let pairs = |count: usize| (count * (count - 1)) as f64;
            excess += 2.0 * likeness * pairs(rows.len()) / pairs(seen.len());
        }
        let effect = 1.0 + excess / n;
        if effect.is_finite() { n / effect.max(1.0) } else { n }
    }

    /// Puts what was measured beside its null. `latents` are those that it was fitted to: the first
    /// window of a size class pays for the null of CSI.
    pub fn judge(&self, latents: ArrayView2<'_, f64>, observed: &Observed) -> NullValues {
        let m = self.baseline as f64;
        let n = observed.effective_samples.clamp(1.0, observed.samples.max(1) as f64);
        NullValues {
            samples: observed.samples,
            shared: n / (n + m),
            energy: self.energy.as_ref().zip(finite(observed.energy)).map(|(null, value)| Judged {
                value,
                mean: null.mean(n),
                quantile: null.upper_quantile(1.0 - QUANTILE, n),
                p: Some(null.p(value, n)),
            }),
            csi: finite(observed.csi_per_sample).and_then(|value| {
                let null = self.csi(latents, observed.samples)?;
                Some(Judged {
                    value,
                    mean: null.mean(),
                    quantile: null.quantile(QUANTILE, n),
                    p: Some(null.p(value, n)),
                })
            }),
            mop: self.mop(observed, n),
            dispersion: self.dispersion.zip(finite(observed.dispersion_ratio)).map(
                |(spread, value)| {
                    let deviation = spread * (1.0 / n + 1.0 / m).sqrt();
                    // Both variances have their divisors uncorrected.
                    let mean = (1.0 - 1.0 / n) / (1.0 - 1.0 / m);
                    Judged {
                        value,
                        mean,
                        quantile: mean - normal_upper_quantile(1.0 - QUANTILE) * deviation,
                        p: Some(normal_tail((mean - value) / deviation)),
                    }
                },
            ),
            distinct: finite(observed.distinct_ratio).and_then(|value| {
                let mean = self.expected_distinct(observed.samples)?;
                Some(Judged { value, mean, quantile: mean, p: None })
            }),
        }
    }

    /// Of `M` exchangeable distances `k` exceed the threshold. Then the share of fresh ones that do is
    /// drawn from `Beta(k + 1, M - k)` at most, whichever way the threshold was chosen.
    fn mop(&self, observed: &Observed, n: f64) -> Option<Judged> {
        let (value, threshold) = (finite(observed.mop)?, finite(observed.mop_threshold)?);
        let total = self.mahalanobis.len();
        if total == 0 {
            return None;
        }
        let beyond = total - self.mahalanobis.partition_point(|distance| *distance <= threshold);
        let (a, b) = ((beyond + 1) as f64, (total - beyond).max(1) as f64);
        let trials = n.round();
        // Rounded, lest 5 / 512 * 512 be less than 5.
        let count = (value * trials + 1e-6).floor();
        let tail = |count: f64| beta_binomial_tail(count as u64, trials as u64, a, b);
        // The least count that is exceeded with less than 0.05.
        let quantile = bisect(-1.0, trials, |count| tail(count.floor() + 1.0) <= 1.0 - QUANTILE);
        Some(Judged {
            value,
            mean: a / (a + b),
            quantile: quantile.floor().max(0.0) / trials,
            p: Some(tail(count)),
        })
    }

    fn csi(&self, latents: ArrayView2<'_, f64>, samples: usize) -> Option<Arc<CsiNull>> {
        let size = held_out(samples, self.baseline);
        if let Some(known) = self.csi.lock().get(&size) {
            return known.clone();
        }
        let null = CsiNull::fit(latents, size, &self.parameters).map(Arc::new);
        self.csi.lock().insert(size, null.clone());
        null
    }

    /// Expected share of different latents among `samples` of the baseline, drawn without putting
    /// back (rarefaction; Hurlbert 1971); of all of them for a larger window.
    fn expected_distinct(&self, samples: usize) -> Option<f64> {
        let (total, drawn) = (self.baseline, samples.min(self.baseline));
        if drawn == 0 {
            return None;
        }
        let ln_choose = |n: usize, k: usize| {
            let [n, k] = [n as f64, k as f64];
            lgamma(n + 1.0) - lgamma(k + 1.0) - lgamma(n - k + 1.0)
        };
        let absent = |times: usize| {
            if total - times < drawn {
                0.0
            } else {
                (ln_choose(total - times, drawn) - ln_choose(total, drawn)).exp()
            }
        };
        let single = total - self.repeats.iter().sum::<usize>();
        let distinct = single as f64 * (1.0 - absent(1))
            + self.repeats.iter().map(|&times| 1.0 - absent(times)).sum::<f64>();
        Some((distinct / drawn as f64).min(1.0))
    }
}

fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

/// Standard deviation of the squared distance from the mean, over its mean.
fn relative_spread(latents: ArrayView2<'_, f64>) -> Option<f64> {
    let centred = &latents - &mean(latents);
    let squares = centred.map_axis(Axis(1), |row| row.dot(&row));
    let spread = squares.std(1.0) / squares.mean()?;
    spread.is_finite().then_some(spread)
}

/// How often each latent stands there that stands there more than once. The same answer has the same
/// latent, to the last bit.
fn repeats(latents: ArrayView2<'_, f64>) -> Vec<usize> {
    let mut counts: HashMap<Vec<u64>, usize> = HashMap::new();
    for row in latents.outer_iter() {
        *counts.entry(row.iter().map(|value| value.to_bits()).collect()).or_default() += 1;
    }
    let mut repeats: Vec<_> = counts.into_values().filter(|count| *count > 1).collect();
    repeats.sort_unstable();
    repeats
}
