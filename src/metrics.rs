//! Prometheus metrics. Every name is described in `docs/metrics.md`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;

use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, exponential_buckets, linear_buckets,
};

/// All metrics of one server, in a registry of their own. Cheap to clone: every request does.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<MetricSet>);

impl Deref for Metrics {
    type Target = MetricSet;

    fn deref(&self) -> &MetricSet {
        &self.0
    }
}

/// The metrics.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct MetricSet {
    registry: Registry,
    pub requests: IntCounterVec,
    pub request_seconds: HistogramVec,
    pub item_errors: IntCounterVec,
    pub queue_tokens: IntGauge,
    pub queue_seconds: Histogram,
    pub batch_tokens: Histogram,
    pub batch_sequences: Histogram,
    pub tokens: IntCounterVec,
    pub forward_seconds: Histogram,
    pub cache_hits: IntCounter,
    pub cache_misses: IntCounter,
    pub cache_merged: IntCounter,
    pub cache_bytes: IntGauge,
    pub cache_entries: IntGauge,
    pub reward: Histogram,
    pub monitor_lag_seconds: Gauge,
    pub monitor_dropped: IntCounter,
    pub journal_bytes: IntGauge,
    pub journal_pending: IntGauge,
    pub journal_failed: IntGauge,
    pub journal_lost: IntCounter,
    pub evaluation_seconds: Histogram,
    pub evaluations_pending: IntGauge,
    pub runs: RunMetrics,
}

/// Gauges of the monitored runs, labelled `run`: what each shows of the run's last window.
const RUN_GAUGES: &[(&str, &str)] = &[
    ("inform_csi", "Cluster Separation Index of the last window"),
    ("inform_csi_per_sample", "Cluster Separation Index divided by the window's samples"),
    ("inform_csi_null_p95", "Quantile 0.95 of CSI per sample on windows of fresh SFT answers"),
    ("inform_energy_null_p95", "Quantile 0.95 of the energy distance of fresh SFT answers"),
    ("inform_energy_p", "Probability of such an energy distance of fresh SFT answers"),
    ("inform_mop_null_p95", "Quantile 0.95 of MOP on windows of fresh SFT answers"),
    ("inform_csi_change_ratio", "Last change of the index over the mean of the changes before it"),
    ("inform_noise_fraction", "Share of the window that belongs to no cluster"),
    ("inform_early_stop", "1 once an evaluation has said that training should stop"),
    ("inform_energy", "Energy distance of the window and the baseline"),
    ("inform_mop", "Share of the window beyond nearly all held-out baseline latents"),
    ("inform_mahalanobis_mean", "Mean Mahalanobis distance of the window from the baseline"),
    ("inform_dispersion_ratio", "Variance of the window's latents over that of the baseline's"),
    ("inform_knn_distance", "Mean distance to the k-th nearest baseline latent"),
    ("inform_paired_distance", "Mean distance to the baseline's answer to the same prompt"),
    ("inform_saturation", "Share of rewards above the 0.99 quantile of the baseline's"),
    ("inform_group_zero_variance_rate", "Share of prompts whose answers all have one reward"),
    ("inform_reward_length_rho", "Rank correlation of reward and length"),
    ("inform_distinct_ratio", "Different sequences over samples of the window"),
    ("inform_reward_mean", "Mean reward of the window"),
    ("inform_reward_std", "Standard deviation of the window's rewards"),
    ("inform_tokens_mean", "Mean tokens of the window's sequences"),
    ("inform_sigma_mean", "Mean posterior standard deviation of the window"),
    ("inform_divergence_mean", "Mean KL divergence of the posterior from N(0, I), in nats"),
];

/// Metrics of the monitored runs, labelled `run`.
#[derive(Debug)]
pub struct RunMetrics {
    gauges: Vec<(&'static str, GaugeVec)>,
    /// Evaluated windows.
    pub evaluations: IntCounterVec,
    /// Samples of the policy.
    pub samples: IntCounterVec,
    /// 1 while an alert lasts, by run and kind.
    pub alert: IntGaugeVec,
}

impl RunMetrics {
    /// Sets a gauge of a run, or takes it back: an older value would pass for the last window's.
    pub fn set(&self, name: &str, run: &str, value: Option<f64>) {
        let gauge = self.gauges.iter().find(|(known, _)| *known == name);
        debug_assert!(gauge.is_some(), "{name} is not among RUN_GAUGES");
        if let Some((_, gauge)) = gauge {
            match value {
                Some(value) => gauge.with_label_values(&[run]).set(value),
                // An error says that there was none.
                None => drop(gauge.remove_label_values(&[run])),
            }
        }
    }

    /// Forgets a run's labels; `kinds` are those of its alerts.
    pub fn remove(&self, run: &str, kinds: &[&str]) {
        for (_, gauge) in &self.gauges {
            let _ = gauge.remove_label_values(&[run]);
        }
        let _ = self.evaluations.remove_label_values(&[run]);
        let _ = self.samples.remove_label_values(&[run]);
        for kind in kinds {
            let _ = self.alert.remove_label_values(&[run, kind]);
        }
    }
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// Where two metrics share a name.
    pub fn new() -> Result<Self, prometheus::Error> {
        Self::in_registry(Registry::new())
    }

    /// The metrics of one of several models, all labelled `model`.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub fn of_model(name: &str) -> Result<Self, prometheus::Error> {
        let labels = HashMap::from([("model".to_owned(), name.to_owned())]);
        Self::in_registry(Registry::new_custom(None, Some(labels))?)
    }

    fn in_registry(registry: Registry) -> Result<Self, prometheus::Error> {
        let seconds = exponential_buckets(0.0005, 2.0, 18)?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let histogram =
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let run_gauge = |name: &str, help: &str| {
            let gauges = GaugeVec::new(Opts::new(name, help), &["run"])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let alert = IntGaugeVec::new(
            Opts::new("inform_alert", "1 while an alert of this kind lasts"),
            &["run", "kind"],
        )?;
        registry.register(Box::new(alert.clone()))?;
        let monitor_lag_seconds = Gauge::new(
            "inform_monitor_lag_seconds",
            "Age of the last observation when the monitor took it up",
        )?;
        registry.register(Box::new(monitor_lag_seconds.clone()))?;
        let request_seconds = HistogramVec::new(
            HistogramOpts::new("inform_request_seconds", "Time from request to answer")
                .buckets(seconds.clone()),
            &["route"],
        )?;
        registry.register(Box::new(request_seconds.clone()))?;
        Ok(Self(Arc::new(MetricSet {
            requests: counters(
                "inform_requests_total",
                "Requests by route and answer code",
                &["route", "code"],
            )?,
            request_seconds,
            item_errors: counters(
                "inform_item_errors_total",
                "Inputs that were not scored, by item code",
                &["code"],
            )?,
            queue_tokens: gauge("inform_queue_tokens", "Tokens waiting for the device")?,
            queue_seconds: histogram(
                "inform_queue_seconds",
                "Time an input waits for the device",
                &seconds,
            )?,
            batch_tokens: histogram(
                "inform_batch_tokens",
                "Tokens of a batch",
                &exponential_buckets(16.0, 2.0, 14)?,
            )?,
            batch_sequences: histogram(
                "inform_batch_sequences",
                "Sequences of a batch",
                &exponential_buckets(1.0, 2.0, 12)?,
            )?,
            tokens: counters(
                "inform_tokens_total",
                "Tokens: logical as received; computed by the device, shared with another input of the batch, of cached scores, merged with the same work under way",
                &["kind"],
            )?,
            forward_seconds: histogram(
                "inform_forward_seconds",
                "Time of a batch on the device",
                &seconds,
            )?,
            cache_hits: counter("inform_cache_hits_total", "Inputs whose score was cached")?,
            cache_misses: counter(
                "inform_cache_misses_total",
                "Inputs that were looked up and not found",
            )?,
            cache_merged: counter(
                "inform_cache_merged_total",
                "Inputs that shared the computation of the same input, which was under way",
            )?,
            cache_bytes: gauge("inform_cache_bytes", "Bytes of the score cache")?,
            cache_entries: gauge("inform_cache_entries", "Scores in the cache")?,
            reward: histogram("inform_reward", "Rewards given", &linear_buckets(-10.0, 1.0, 21)?)?,
            monitor_lag_seconds,
            monitor_dropped: counter(
                "inform_monitor_dropped_total",
                "Samples that the monitor did not see because it was too far behind",
            )?,
            journal_bytes: gauge("inform_journal_bytes", "Bytes of the journal's file")?,
            journal_pending: gauge(
                "inform_journal_pending",
                "Samples that are not in the journal yet",
            )?,
            journal_failed: gauge(
                "inform_journal_failed",
                "1 while the journal cannot be written, else 0",
            )?,
            journal_lost: counter(
                "inform_journal_lost_total",
                "Samples that were monitored and never reached the journal",
            )?,
            evaluation_seconds: histogram(
                "inform_evaluation_seconds",
                "Time of an evaluation of a window",
                &seconds,
            )?,
            evaluations_pending: gauge(
                "inform_evaluations_pending",
                "Windows that wait for their evaluation, or are in it",
            )?,
            runs: RunMetrics {
                gauges: RUN_GAUGES
                    .iter()
                    .map(|&(name, help)| Ok((name, run_gauge(name, help)?)))
                    .collect::<Result<_, prometheus::Error>>()?,
                evaluations: counters(
                    "inform_evaluations_total",
                    "Evaluations of a run",
                    &["run"],
                )?,
                samples: counters(
                    "inform_run_samples_total",
                    "Answers of a run's policy that the monitor has seen",
                    &["run"],
                )?,
                alert,
            },
            registry,
        })))
    }

    /// Counts tokens of a kind.
    pub fn count_tokens(&self, kind: &str, tokens: usize) {
        self.tokens.with_label_values(&[kind]).inc_by(tokens as u64);
    }

    /// The metrics of several models in the Prometheus text format, version 0.0.4. What is of one name must stand
    /// together.
    ///
    /// # Errors
    /// Where a metric cannot be written.
    pub fn render_all(models: impl IntoIterator<Item = Self>) -> Result<String, prometheus::Error> {
        let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
        for mut family in models.into_iter().flat_map(|model| model.registry.gather()) {
            match families.entry(family.name().to_owned()) {
                Entry::Vacant(entry) => drop(entry.insert(family)),
                Entry::Occupied(entry) => {
                    entry.into_mut().mut_metric().append(family.mut_metric());
                }
            }
        }
        let families: Vec<MetricFamily> = families.into_values().collect();
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}
