//! One evaluation of the monitor: all statistics of a window of N latents against a baseline of as many,
//! d = 128, on one thread. Prints how time and memory grow.
//!
//!     cargo bench --bench evaluation -- [--sizes 1000,2000,5000,10000,20000] [--rounds 3]
//!
//! With `--serve-stdin` it answers the requests of `benches/peers/evaluation.py`, one a line: [`Request`].

#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use common::{is_given, serve, value};
use inform::model::standard_normal;
use inform::monitor::evaluate_window;
use inform::monitor::statistics::StatisticsParameters;
use inform::monitor::statistics::csi::{CsiParameters, csi};
use inform::monitor::{BaselineAnswers, BaselineOrigin, BaselineSet, Sample};
use ndarray::Array2;
use serde::Deserialize;
use serde_json::json;

const DIMENSION: usize = 128;

/// Answers with these latents `[N, dimension]`; rewards, lengths and prompts are made up.
fn samples(latents: &[f32], dimension: usize) -> Vec<Sample> {
    let rewards = standard_normal(3, 0, latents.len() / dimension);
    let answers = latents.chunks_exact(dimension).zip(rewards).enumerate();
    answers
        .map(|(index, (latent, reward))| Sample {
            latent: latent.to_vec(),
            sigma: 1.0,
            divergence: 1.0,
            reward,
            tokens: (reward * 50.0) as u32 + 200,
            response_characters: None,
            prompt: Some(index as u64 / 4),
            sequence: index as u64,
            request: Arc::from("bench"),
            index: 0,
        })
        .collect()
}

fn baseline(samples: &[Sample]) -> anyhow::Result<BaselineSet> {
    let mut answers = BaselineAnswers::default();
    samples.iter().for_each(|sample| answers.push(sample));
    BaselineSet::new(answers, BaselineOrigin::Recorded, 1).context("a baseline of no answers")
}

#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
enum Request {
    /// Files of little-endian f32 latents, row by row, that are evaluated from now on. Answers the
    /// `seconds` of what is computed once for a baseline.
    Load { window: PathBuf, baseline: PathBuf, dimension: usize, csi: CsiParameters },
    /// All statistics. Answers `seconds` and `statistics`.
    Evaluate,
    /// CSI alone. Answers `seconds`, `csi` and `clusters`.
    Csi,
}

struct Loaded {
    samples: Vec<Sample>,
    latents: Array2<f64>,
    baseline: BaselineSet,
    parameters: StatisticsParameters,
}

fn read(path: &Path) -> anyhow::Result<Vec<f32>> {
    let bytes = std::fs::read(path)?;
    let (values, rest) = bytes.as_chunks::<4>();
    ensure!(rest.is_empty(), "{}: not a file of f32", path.display());
    Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

fn answer_requests() -> anyhow::Result<()> {
    let mut loaded = None;
    serve(|request| {
        if let Request::Load { window, baseline: file, dimension, csi } = request {
            let latents = read(&window)?;
            let samples = samples(&latents, dimension);
            let wide = latents.into_iter().map(f64::from).collect();
            let latents = Array2::from_shape_vec((samples.len(), dimension), wide)?;
            let baseline = baseline(&self::samples(&read(&file)?, dimension))?;
            let parameters = StatisticsParameters { csi, ..StatisticsParameters::default() };
            let started = Instant::now();
            baseline.reference(&parameters.csi);
            let seconds = started.elapsed().as_secs_f64();
            loaded = Some(Loaded { samples, latents, baseline, parameters });
            return Ok(json!({ "seconds": seconds }));
        }
        let loaded = loaded.as_ref().context("nothing is loaded")?;
        let Loaded { samples, latents, baseline, parameters } = loaded;
        let started = Instant::now();
        if let Request::Csi = request {
            let found = csi(latents.view(), baseline.latents.view(), &parameters.csi)?;
            let seconds = started.elapsed().as_secs_f64();
            return Ok(json!({ "seconds": seconds, "csi": found.csi, "clusters": found.clusters }));
        }
        let found = evaluate_window(samples, Some(baseline), parameters);
        let seconds = started.elapsed().as_secs_f64();
        Ok(json!({ "seconds": seconds, "statistics": found.statistics }))
    })
}

/// Most memory that the process has had, in MB.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1000)
}

fn main() -> anyhow::Result<()> {
    if is_given("--serve-stdin") {
        return answer_requests();
    }
    let sizes: String = value("--sizes")?.unwrap_or("1000,2000,5000,10000,20000".to_owned());
    let rounds: usize = value("--rounds")?.unwrap_or(3);
    println!("| N = M | baseline, once: ms | evaluation: ms | peak resident: MB |");
    println!("|--:|--:|--:|--:|");
    for size in sizes.split(',') {
        let size: usize = size.trim().parse().context("--sizes: whole numbers")?;
        let [window, sft] =
            [1, 2].map(|seed| samples(&standard_normal(seed, 0, size * DIMENSION), DIMENSION));
        let baseline = baseline(&sft)?;
        let parameters = StatisticsParameters::default();
        let started = Instant::now();
        baseline.reference(&parameters.csi);
        let once = started.elapsed();
        let mut times = Vec::new();
        for _ in 0..rounds.max(1) {
            let started = Instant::now();
            std::hint::black_box(evaluate_window(&window, Some(&baseline), &parameters));
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let (median, peak) = (times[times.len() / 2], peak().unwrap_or_default());
        println!("| {size} | {} | {} | {peak} |", once.as_millis(), median.as_millis());
    }
    Ok(())
}
