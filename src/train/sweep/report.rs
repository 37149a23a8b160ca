//! What came of a sweep: each run, each setting over its seeds, as a table and a plot.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::grid::{GridRun, Setting};
use crate::checkpoint::replace_file;
use crate::plots::{Figure, FigurePanel, FigurePoint, Series, Size, short};
use crate::train::accuracy::PairAccuracy;
use crate::train::fit::{FitReport, HeadKind};

/// Files of the report, without their suffixes.
const NAME: &str = "sweep";
/// By how much points of neighbouring series stand apart, in steps of the horizontal axis.
const APART: f64 = 0.06;

/// What came of a sweep.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SweepReport {
    /// Settings, each over its seeds.
    pub settings: Vec<SettingSummary>,
    /// The runs.
    pub runs: Vec<RunSummary>,
    /// Those that failed.
    pub failed: Vec<FailedRun>,
}

/// What came of a run, on the pairs that it held out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// Name of its folder.
    pub name: String,
    /// What it was trained with.
    #[serde(flatten)]
    pub setting: Setting,
    /// Its seed.
    pub seed: u64,
    /// Pair accuracy with its interval.
    pub held_out: Option<PairAccuracy>,
    /// Calibration error.
    pub calibration_error: Option<f64>,
    /// Mean KL divergence of an answer, in nats.
    pub kl: Option<f64>,
    /// Active units.
    pub active_units: Option<usize>,
}

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailedRun {
    /// Name of its folder.
    pub name: String,
    /// Why.
    pub error: String,
}

/// What came of a setting over its seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SettingSummary {
    /// The setting.
    #[serde(flatten)]
    pub setting: Setting,
    /// Runs with it.
    pub seeds: usize,
    /// Pair accuracy.
    pub accuracy: Option<Spread>,
    /// Calibration error.
    pub calibration_error: Option<Spread>,
    /// Mean KL divergence of an answer, in nats.
    pub kl: Option<Spread>,
    /// Active units.
    pub active_units: Option<Spread>,
}

/// A figure over several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Its mean.
    pub mean: f64,
    /// Its least value.
    pub least: f64,
    /// Its greatest value.
    pub most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let values: Vec<f64> = values.collect::<Option<_>>()?;
        let bounded = values.iter().copied();
        (!values.is_empty()).then(|| Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            least: bounded.clone().fold(f64::INFINITY, f64::min),
            most: bounded.fold(f64::NEG_INFINITY, f64::max),
        })
    }

    /// The mean, and the range where there is one.
    fn cell(self, decimals: usize) -> String {
        let Self { mean, least, most } = self;
        if least == most {
            return format!("{mean:.decimals$}");
        }
        format!("{mean:.decimals$} ({least:.decimals$} to {most:.decimals$})")
    }
}

impl RunSummary {
    pub(super) fn of(run: &GridRun, report: &FitReport) -> Self {
        Self {
            name: run.name.clone(),
            setting: run.setting,
            seed: run.config.seed,
            held_out: report.held_out.clone(),
            calibration_error: report.calibration_error,
            kl: report.latents.as_ref().map(|latents| latents.kl),
            active_units: report.latents.as_ref().map(|latents| latents.active_units),
        }
    }
}

impl SettingSummary {
    fn of(setting: Setting, runs: &[RunSummary]) -> Self {
        let own = || runs.iter().filter(move |run| run.setting == setting);
        Self {
            setting,
            seeds: own().count(),
            accuracy: Spread::of(own().map(|run| Some(run.held_out.as_ref()?.accuracy))),
            calibration_error: Spread::of(own().map(|run| run.calibration_error)),
            kl: Spread::of(own().map(|run| run.kl)),
            active_units: Spread::of(own().map(|run| run.active_units.map(|units| units as f64))),
        }
    }
}

impl SweepReport {
    /// Gathers runs of one setting, in the order of the runs.
    pub(super) fn summarise(&mut self) {
        let mut settings: Vec<Setting> = Vec::new();
        for run in &self.runs {
            if !settings.contains(&run.setting) {
                settings.push(run.setting);
            }
        }
        let summary = |setting| SettingSummary::of(setting, &self.runs);
        self.settings = settings.into_iter().map(summary).collect();
    }

    /// Writes table, JSON and plot into the sweep's folder.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)?;
        let file = |suffix: &str| folder.join(format!("{NAME}.{suffix}"));
        replace_file(&file("json"), &serde_json::to_vec_pretty(self)?)?;
        replace_file(&file("md"), self.markdown().as_bytes())?;
        self.figure().draw(Size { height: 480, ..Size::CURVE })?.save(folder, NAME)
    }

    /// Tables of the settings and of the runs, and what failed.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "Of held-out pairs: mean over the seeds, with the range.\n\n\
             | head | d | beta | label noise | seeds | accuracy | calibration error | KL (nats) | active units |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        let cell = |spread: Option<Spread>, decimals| {
            spread.map_or(String::new(), |spread| spread.cell(decimals))
        };
        for summary in &self.settings {
            let SettingSummary { setting, seeds, accuracy, calibration_error, kl, active_units } =
                summary;
            let of = |value: Option<String>| value.unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {seeds} | {} | {} | {} | {} |",
                setting.head(),
                of(setting.latent_dim.map(|dimension| dimension.to_string())),
                of(setting.beta.map(|beta| beta.to_string())),
                setting.label_noise,
                cell(*accuracy, 4),
                cell(*calibration_error, 4),
                cell(*kl, 3),
                cell(*active_units, 1),
            );
        }
        text.push_str(
            "\nEach run, with the 95 % interval of its accuracy:\n\n\
             | run | pairs | accuracy | calibration error | KL (nats) | active units |\n\
             |---|---|---|---|---|---|\n",
        );
        for run in &self.runs {
            let (pairs, accuracy) = run.held_out.as_ref().map_or_else(Default::default, |found| {
                let (low, high) = found.interval;
                let words = format!("{:.4} ({low:.4} to {high:.4})", found.accuracy);
                (found.pairs.to_string(), words)
            });
            let number = |value: Option<f64>, decimals: usize| {
                value.map_or(String::new(), |value| format!("{value:.decimals$}"))
            };
            let _ = writeln!(
                text,
                "| {} | {pairs} | {accuracy} | {} | {} | {} |",
                run.name,
                number(run.calibration_error, 4),
                number(run.kl, 3),
                number(run.active_units.map(|units| units as f64), 0),
            );
        }
        for FailedRun { name, error } in &self.failed {
            let _ = writeln!(text, "\n`{name}` failed: {error}");
        }
        text
    }

    /// Accuracy and active units of InfoRM heads against beta, a line for each latent dimension; the range over the
    /// seeds, or where there is one seed the accuracy's interval.
    fn figure(&self) -> Figure {
        let inform = || self.settings.iter().filter(|one| one.setting.kind == HeadKind::Inform);
        let mut betas: Vec<f64> = inform().filter_map(|one| one.setting.beta).collect();
        betas.sort_by(f64::total_cmp);
        betas.dedup();
        let mut lines: Vec<Setting> = Vec::new();
        for one in inform() {
            let line = Setting { beta: None, ..one.setting };
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let place = |beta: f64, line: usize| {
            let step = betas.iter().position(|&other| other == beta).unwrap_or_default();
            step as f64 + APART * (line as f64 - (lines.len() - 1) as f64 / 2.0)
        };
        let panel = |axis: &str, value: &dyn Fn(&SettingSummary) -> Option<Spread>| {
            let series = lines.iter().enumerate().map(|(number, line)| {
                let own = inform().filter(|one| Setting { beta: None, ..one.setting } == *line);
                let mut points: Vec<FigurePoint> = own
                    .filter_map(|one| {
                        let Spread { mean, least, most } = value(one)?;
                        let x = place(one.setting.beta?, number);
                        Some(FigurePoint { x, y: mean, interval: Some((least, most)) })
                    })
                    .collect();
                points.sort_by(|a, b| a.x.total_cmp(&b.x));
                Series { name: line.to_string(), points }
            });
            FigurePanel {
                axis: axis.to_owned(),
                series: series.collect(),
                ..FigurePanel::default()
            }
        };
        let last = betas.len() as f64 - 0.5;
        let standard = self.settings.iter().find(|one| one.setting.kind == HeadKind::Standard);
        let reference = standard
            .and_then(|one| Some((one.setting.to_string(), one.accuracy?.mean)))
            .map(|(name, level)| (name, [(-0.5, level), (last, level)]));
        let accuracy = panel("held-out accuracy", &|one| {
            if one.seeds > 1 {
                return one.accuracy;
            }
            let run = self.runs.iter().find(|run| run.setting == one.setting)?;
            let PairAccuracy { accuracy, interval: (least, most), .. } = *run.held_out.as_ref()?;
            Some(Spread { mean: accuracy, least, most })
        });
        let units = panel("active units", &|one| one.active_units);
        Figure {
            title: "Held-out accuracy and active units".to_owned(),
            note: "Against beta, for each latent dimension.".to_owned(),
            axis: "beta".to_owned(),
            labels: betas.iter().map(|&beta| short(beta)).collect(),
            panels: vec![
                FigurePanel { reference, bounds: (0.0, 1.0), ..accuracy },
                FigurePanel { shown: vec![0.0], bounds: (0.0, f64::INFINITY), ..units },
            ],
            empty: "No run with an InfoRM head is complete.".to_owned(),
        }
    }
}
