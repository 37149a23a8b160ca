//! Alerts from window to window, and on small simulated runs.

#[path = "../../../benches/common/simulation.rs"]
mod simulation;

use inform::monitor::alerts::{
    AlertKind, AlertParameters, Alerts, Changes, Look, OutlyingSample, Severity, moderate_level,
};
use inform::monitor::statistics::null::{Judged, NullValues};
use simulation::{BEFORE, Bench, Change};

struct Run {
    alerts: Alerts,
    number: u64,
    baseline: Option<u64>,
    samples: usize,
}

impl Run {
    fn new(parameters: AlertParameters) -> Self {
        let alerts = Alerts::new(parameters, 32).unwrap();
        Self { alerts, number: 0, baseline: Some(0), samples: 512 }
    }

    fn look(&mut self, null: &NullValues, length: Option<f64>) -> Changes {
        let outlying = vec![OutlyingSample {
            request: "r-1".to_owned(),
            index: 2,
            mahalanobis: Some(9.0),
            reward: 1.5,
        }];
        let changes = self.alerts.push(&Look {
            number: self.number,
            step: Some(10 * self.number),
            at: 100.0 + self.number as f64,
            samples: self.samples,
            baseline: self.baseline,
            null: self.baseline.map(|_| null),
            length,
            outlying: &outlying,
        });
        self.number += 1;
        changes
    }

    fn energy(&mut self, p: f64) -> Changes {
        let energy = Some(Judged { value: 0.3, mean: 0.08, quantile: 0.1, p: Some(p) });
        self.look(&NullValues { samples: self.samples, energy, ..NullValues::default() }, None)
    }

    fn active(&self) -> Vec<AlertKind> {
        self.alerts.active().map(|alert| alert.kind).collect()
    }
}

fn raised(kind: AlertKind) -> Changes {
    Changes { raised: vec![kind], resolved: Vec::new() }
}

fn resolved(kind: AlertKind) -> Changes {
    Changes { raised: Vec::new(), resolved: vec![kind] }
}

const NONE: Changes = Changes { raised: Vec::new(), resolved: Vec::new() };

#[test]
fn three_moderate_windows_in_a_row_raise_once_and_three_quiet_ones_resolve() {
    let mut run = Run::new(AlertParameters::default());
    for p in [0.02, 0.02, 0.5, 0.02, 0.02] {
        assert_eq!(run.energy(p), NONE, "{p}");
    }
    assert_eq!(run.energy(0.02), raised(AlertKind::Energy));
    let alert = run.alerts.active().next().unwrap().clone();
    assert_eq!((alert.since_evaluation, alert.since_step, alert.since), (3, Some(30), 103.0));
    assert_eq!((alert.value, alert.null_mean, alert.null_quantile), (0.3, 0.08, 0.1));
    assert_eq!((alert.p, alert.severity, alert.resolved_at), (Some(0.02), Severity::Warning, None));
    assert_eq!(alert.samples[0].request, "r-1");
    assert_eq!(
        alert.message,
        "the answers as a whole have left the SFT answers: energy distance 0.300 (SFT answers give \
         0.0800 on the average, 95 % of the time below 0.100; p = 0.0200), 3 windows in a row"
    );
    // It lasts, and is not raised again.
    for p in [1e-9, 0.02, 0.5, 0.5, 0.02, 0.5, 0.5] {
        assert_eq!(run.energy(p), NONE, "{p}");
        assert_eq!(run.active(), [AlertKind::Energy]);
    }
    assert_eq!(run.energy(0.5), resolved(AlertKind::Energy));
    assert_eq!(run.active(), []);
    let ended: Vec<_> = run.alerts.history().map(|alert| alert.resolved_at).collect();
    assert_eq!(ended, [Some(113.0)]);
    assert_eq!(run.energy(0.5), NONE);
}

#[test]
fn one_extreme_window_raises() {
    let mut run = Run::new(AlertParameters::default());
    // 0.5 of 1,000 over four kinds and two rules: 0.0000625.
    assert_eq!(run.energy(6.3e-5), NONE);
    assert_eq!(run.energy(0.5), NONE);
    assert_eq!(run.energy(6.2e-5), raised(AlertKind::Energy));
}

#[test]
fn fewer_kinds_have_more_room() {
    let kinds = vec![AlertKind::Energy, AlertKind::Length];
    let mut run = Run::new(AlertParameters { kinds, ..AlertParameters::default() });
    assert_eq!(run.energy(2.4e-4), raised(AlertKind::Energy));
    let kinds = vec![AlertKind::Mop];
    let mut run = Run::new(AlertParameters { kinds, ..AlertParameters::default() });
    assert_eq!(run.energy(0.0), NONE);
}

#[test]
fn small_windows_and_missing_statistics_leave_everything_as_it_is() {
    let mut run = Run::new(AlertParameters::default());
    run.energy(0.01);
    run.energy(0.01);
    run.samples = 31;
    assert_eq!(run.energy(0.9), NONE);
    assert_eq!(run.energy(0.0), NONE);
    run.samples = 32;
    assert_eq!(run.look(&NullValues::default(), None), NONE);
    assert_eq!(run.energy(0.01), raised(AlertKind::Energy));
}

#[test]
fn another_baseline_begins_anew() {
    let mut run = Run::new(AlertParameters::default());
    assert_eq!(run.energy(0.0), raised(AlertKind::Energy));
    run.baseline = Some(1);
    assert_eq!(run.energy(0.01), resolved(AlertKind::Energy));
    assert_eq!(run.energy(0.01), NONE);
    run.baseline = None;
    assert_eq!(run.energy(0.0), NONE);
    run.baseline = Some(1);
    assert_eq!(run.energy(0.01), NONE);
    assert_eq!(run.energy(0.01), NONE);
    assert_eq!(run.energy(0.01), raised(AlertKind::Energy));
}

#[test]
fn collapse_is_far_below_and_not_only_significant() {
    let window = |value: f64, distinct: f64| NullValues {
        dispersion: Some(Judged { value, mean: 1.0, quantile: 0.95, p: Some(0.0) }),
        distinct: Some(Judged { value: distinct, mean: 1.0, quantile: 1.0, p: None }),
        ..NullValues::default()
    };
    let mut run = Run::new(AlertParameters::default());
    assert_eq!(run.look(&window(0.6, 1.0), None), NONE);
    assert_eq!(run.look(&window(0.4, 1.0), None), raised(AlertKind::Collapse));
    let alert = run.alerts.active().next().unwrap();
    assert_eq!(
        (alert.statistic.as_str(), alert.severity),
        ("dispersion_ratio", Severity::Critical)
    );

    let mut run = Run::new(AlertParameters::default());
    assert_eq!(run.look(&window(1.0, 0.5), None), NONE);
    assert_eq!(run.look(&window(1.0, 0.4), None), NONE);
    assert_eq!(run.look(&window(1.0, 0.4), None), raised(AlertKind::Collapse));
    assert_eq!(run.alerts.active().next().unwrap().statistic, "distinct_ratio");
}

#[test]
fn length_is_measured_by_the_first_windows_and_needs_no_baseline() {
    let mut run = Run::new(AlertParameters::default());
    run.baseline = None;
    let empty = NullValues::default();
    for length in [90.0, 100.0, 110.0, 149.0, 151.0, 152.0] {
        assert_eq!(run.look(&empty, Some(length)), NONE, "{length}");
    }
    assert_eq!(run.look(&empty, Some(153.0)), raised(AlertKind::Length));
    let alert = run.alerts.active().next().unwrap();
    assert_eq!((alert.null_mean, alert.null_quantile, alert.p), (100.0, 150.0, None));
}

#[test]
fn windows_that_share_their_baseline_need_a_lower_level() {
    let rate = 1e-4;
    assert_eq!(moderate_level(rate, 1, 0.7), rate);
    assert!((moderate_level(rate, 4, 0.0) - 0.1).abs() < 1e-9);
    let levels = [0.0, 0.01, 0.1, 0.5, 0.9, 1.0].map(|shared| moderate_level(rate, 3, shared));
    assert!(levels.is_sorted_by(|a, b| a > b), "{levels:?}");
    assert!((levels[5] / rate - 1.0).abs() < 0.01, "{levels:?}");
    // P(both below the median) of a pair correlated by r is 1/4 + asin(r) / (2 pi).
    let both = 0.25 + 0.5_f64.asin() / std::f64::consts::TAU;
    assert!((moderate_level(both, 2, 0.5) - 0.5).abs() < 1e-6);
}

#[test]
fn parameters_out_of_range_are_named() {
    let default = AlertParameters::default;
    for (parameters, setting) in [
        (AlertParameters { consecutive: 0, ..default() }, "consecutive"),
        (
            AlertParameters { false_alarms_per_1000_windows: 0.0, ..default() },
            "false_alarms_per_1000_windows",
        ),
        (AlertParameters { collapse_ratio: 1.5, ..default() }, "collapse_ratio"),
        (AlertParameters { length_ratio: f64::NAN, ..default() }, "length_ratio"),
        (AlertParameters { length_windows: 0, ..default() }, "length_windows"),
    ] {
        assert_eq!(Alerts::new(parameters, 32).unwrap_err().setting, setting);
    }
}

#[test]
fn simulated_changes_are_seen_and_unchanged_runs_are_left_alone() {
    let parameters = AlertParameters::default();
    let mut false_alarms = 0;
    for seed in 0..3 {
        let mut bench = Bench::new(seed, 16, 2000, 256);
        false_alarms += bench.run(&parameters, None, 60).len();
        for change in Change::ALL {
            let raised = bench.run(&parameters, Some(change), BEFORE + change.horizon());
            assert!(raised.iter().any(|(number, _)| *number >= BEFORE), "{change:?}, seed {seed}");
            if change == Change::Length {
                assert!(raised.iter().any(|(_, kind)| *kind == AlertKind::Length), "seed {seed}");
            }
        }
    }
    // 0.09 are to be expected.
    assert!(false_alarms <= 2, "{false_alarms}");
}
