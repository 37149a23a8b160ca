//! Alerts on simulated runs with a known change: detection rate, delay, and false alarms.
//!
//!     cargo bench --bench monitor_simulation -- --seeds 100

#[path = "common/simulation.rs"]
mod simulation;

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Parser;
use inform::monitor::alerts::{AlertKind, AlertParameters};
use rayon::prelude::*;
use simulation::{BEFORE, Bench, Change};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// Runs of each kind.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Windows of each unchanged run.
    #[arg(long, default_value_t = 200)]
    windows: usize,
    /// Latents of the baselines.
    #[arg(long, value_delimiter = ',', default_values_t = [5000, 512])]
    baselines: Vec<usize>,
    /// Answers of a window.
    #[arg(long, default_value_t = 512)]
    window: usize,
    #[arg(long, default_value_t = 128)]
    dimension: usize,
    /// Cargo's own.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Of one seed.
struct Outcome {
    fit_seconds: f64,
    /// Kinds that unchanged windows raised, and the number of these windows.
    false_alarms: Vec<AlertKind>,
    unchanged: usize,
    detected: Vec<Option<(usize, AlertKind)>>,
}

fn main() {
    let arguments = Arguments::parse();
    let parameters = AlertParameters::default();
    println!(
        "windows of {}, d = {}, {} runs of each kind, defaults of `monitor.alerts`\n",
        arguments.window, arguments.dimension, arguments.seeds
    );
    for &baseline in &arguments.baselines {
        let started = Instant::now();
        let outcomes: Vec<_> = (0..arguments.seeds)
            .into_par_iter()
            .map(|seed| simulate(&arguments, &parameters, baseline, seed))
            .collect();
        print(baseline, &outcomes, started.elapsed().as_secs_f64());
    }
}

fn simulate(
    arguments: &Arguments,
    parameters: &AlertParameters,
    baseline: usize,
    seed: u64,
) -> Outcome {
    let started = Instant::now();
    let mut bench = Bench::new(seed, arguments.dimension, baseline, arguments.window);
    let (observed, _) = bench.observe(None);
    bench.judge(&observed);
    let fit_seconds = started.elapsed().as_secs_f64();
    let raised = bench.run(parameters, None, arguments.windows);
    let mut false_alarms: Vec<_> = raised.into_iter().map(|(_, kind)| kind).collect();
    let mut unchanged = arguments.windows;
    let detected = Change::ALL.map(|change| {
        let raised = bench.run(parameters, Some(change), BEFORE + change.horizon());
        unchanged += BEFORE;
        let (before, after): (Vec<_>, Vec<_>) =
            raised.into_iter().partition(|(number, _)| *number < BEFORE);
        false_alarms.extend(before.into_iter().map(|(_, kind)| kind));
        after.first().map(|(number, kind)| (number + 1 - BEFORE, *kind))
    });
    Outcome { fit_seconds, false_alarms, unchanged, detected: detected.into() }
}

fn print(baseline: usize, outcomes: &[Outcome], seconds: f64) {
    let windows: usize = outcomes.iter().map(|outcome| outcome.unchanged).sum();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in outcomes.iter().flat_map(|outcome| &outcome.false_alarms) {
        *kinds.entry(kind.name()).or_default() += 1;
    }
    let alarms: usize = kinds.values().sum();
    println!("Baseline of {baseline}:\n");
    println!("| change | seen within | rate | delay in windows: median, 99 %, most | first by |");
    println!("|---|---|---|---|---|");
    for (index, change) in Change::ALL.into_iter().enumerate() {
        let found: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.detected[index]).collect();
        let mut delays: Vec<_> = found.iter().map(|(delay, _)| *delay).collect();
        delays.sort_unstable();
        let at = |share: f64| {
            let place = (share * delays.len() as f64).ceil() as usize;
            delays.get(place.saturating_sub(1)).map_or("-".to_owned(), ToString::to_string)
        };
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, kind) in &found {
            *first.entry(kind.name()).or_default() += 1;
        }
        let first: Vec<_> = first.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        println!(
            "| {} | {} | {} of {} | {}, {}, {} | {} |",
            change.describe(),
            change.horizon(),
            found.len(),
            outcomes.len(),
            at(0.5),
            at(0.99),
            at(1.0),
            first.join(", ")
        );
    }
    let fit = outcomes.iter().map(|outcome| outcome.fit_seconds).fold(0.0, f64::max);
    println!(
        "\nFalse alarms: {alarms} in {windows} unchanged windows, {:.2} per 1,000 {kinds:?}. \
         {seconds:.0} s; first window of a baseline at most {fit:.1} s.\n",
        1000.0 * alarms as f64 / windows as f64
    );
}
