//! Scoring throughput on real pairs, in one process: arrangements are interleaved round by round, and
//! medians are printed.
//!
//!     cargo bench --bench score -- --model DIR --data PAIRS.jsonl.gz [--pairs 128] [--rounds 5]
//!         [--budget 8192] [--threads 0]
//!
//! With `--members DIR,DIR,..` an ensemble of the model and these is measured beside the model alone.
//!
//! With `--model DIR --serve-stdin` it answers the requests of `benches/peers`, one a line: [`Request`].
//!
//! Tokens a second are real ones: shared tokens count as often as they stand in the texts.

#![allow(missing_docs)]

mod common;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use common::{is_given, serve, value};
use inform::checkpoint::{Checkpoint, Input};
use inform::config::ServerConfig;
use inform::model::{Aggregate, RewardModel, Scorer};
use inform::model_loader::ServedModel;
use inform::ops::Packing;
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::{BadLines, read_pairs};
use serde::Deserialize;
use serde_json::{Value, json};

/// Tokens of a batch: the server's default.
const BUDGET: usize = 8192;

/// A checkpoint, and its model in each precision that was asked for.
struct Models {
    checkpoint: Checkpoint,
    threads: usize,
    loaded: HashMap<&'static str, Option<RewardModel<CpuOps>>>,
}

/// What scoring all texts once took and gave.
struct Run {
    seconds: f64,
    /// Tokens that went through the model.
    computed: usize,
    rewards: Vec<f32>,
}

impl Models {
    fn open(model: &Path, threads: usize) -> anyhow::Result<Self> {
        Ok(Self { checkpoint: Checkpoint::open(model)?, threads, loaded: HashMap::new() })
    }

    /// `None` where this processor lacks the precision.
    fn get(&mut self, precision: Precision) -> anyhow::Result<Option<&RewardModel<CpuOps>>> {
        let model = match self.loaded.entry(precision.name()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let load =
                    |ops| RewardModel::load(ops, &self.checkpoint.config, &self.checkpoint.tensors);
                entry.insert(CpuOps::new(self.threads, precision).ok().map(load).transpose()?)
            }
        };
        Ok(model.as_ref())
    }

    /// Token ids of the answers of the file's first pairs: chosen, rejected, chosen, ...
    fn encode(&self, data: PathBuf, pairs: usize) -> anyhow::Result<Vec<Vec<u32>>> {
        let pairs = read_pairs(&[data], BadLines::Refuse)?.0.into_iter().take(pairs);
        let encoder = &self.checkpoint.encoder;
        pairs
            .flat_map(|pair| [pair.chosen, pair.rejected])
            .map(|text| Ok(encoder.encode(&Input::Messages(text), true)?.ids))
            .collect()
    }
}

/// Batches of at most `budget` tokens, in the order of the texts.
fn batches(texts: &[Vec<u32>], budget: usize) -> Vec<Vec<&[u32]>> {
    let mut batches: Vec<Vec<&[u32]>> = vec![Vec::new()];
    let mut tokens = 0;
    for text in texts {
        if tokens + text.len() > budget && tokens > 0 {
            batches.push(Vec::new());
            tokens = 0;
        }
        tokens += text.len();
        batches.last_mut().expect("one batch at least").push(text);
    }
    batches
}

fn score(
    model: &dyn Scorer,
    texts: &[Vec<u32>],
    shared: bool,
    budget: usize,
) -> anyhow::Result<Run> {
    let started = Instant::now();
    let (mut computed, mut rewards) = (0, Vec::with_capacity(texts.len()));
    for batch in batches(texts, budget) {
        let packing = if shared { Packing::shared(&batch) } else { Packing::new(&batch) };
        let packing = packing.context("no texts, or an empty one")?;
        computed += packing.rows();
        rewards.extend(model.score_packed(&packing)?.into_iter().map(|score| score.reward));
    }
    Ok(Run { seconds: started.elapsed().as_secs_f64(), computed, rewards })
}

/// An ensemble against its first member alone, in turn in each round, prefixes shared.
fn compare_ensemble(
    model: PathBuf,
    members: &str,
    threads: usize,
    texts: &[Vec<u32>],
    (rounds, budget): (usize, usize),
) -> anyhow::Result<()> {
    let mut config = ServerConfig { model, ..ServerConfig::default() };
    let alone = ServedModel::open(&config)?;
    config.ensemble.members = members.split(',').map(PathBuf::from).collect();
    config.ensemble.aggregate = Aggregate::Uwo;
    let ensemble = ServedModel::open(&config)?;
    let info = ensemble.ensemble_info().context("no members")?;
    let shared = info.members.iter().filter(|member| member.backbone == 0).count();
    println!("{} members, {shared} on the first one's backbone", info.members.len());
    for precision in [Precision::F32, Precision::Bf16] {
        let Ok(ops) = CpuOps::new(threads, precision) else { continue };
        let models = [alone.load(ops)?, ensemble.load(CpuOps::new(threads, precision)?)?];
        let mut seconds = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            // In turn which comes first.
            for index in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let run = score(models[index].as_ref(), texts, true, budget)?;
                // The first round warms up.
                if round > 0 {
                    seconds[index].push(run.seconds);
                }
            }
        }
        let mut ratios: Vec<f64> =
            seconds[1].iter().zip(&seconds[0]).map(|(all, one)| all / one).collect();
        for values in seconds.iter_mut().chain([&mut ratios]) {
            values.sort_by(f64::total_cmp);
        }
        let (middle, last) = (rounds / 2, rounds.saturating_sub(1));
        if rounds > 0 {
            println!(
                "{}: {:.3} s alone, {:.3} s as an ensemble; median of the rounds' ratios {:.3} ({:.3} to {:.3})",
                precision.name(),
                seconds[0][middle],
                seconds[1][middle],
                ratios[middle],
                ratios[0],
                ratios[last]
            );
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
enum Request {
    /// Answers `texts`, the token ids of the first pairs of a file.
    Encode { data: PathBuf, pairs: usize },
    /// The texts that are scored from now on, as token ids.
    Texts { texts: Vec<Vec<u32>> },
    /// Scores them all, `repeats` times. Answers `seconds` of one time, `computed` tokens, and `rewards`
    /// where `rewards` is true; `seconds` is null where this processor lacks the precision.
    Score {
        precision: Precision,
        shared: bool,
        budget: usize,
        repeats: u32,
        #[serde(default)]
        rewards: bool,
    },
}

fn answer_requests(mut models: Models) -> anyhow::Result<()> {
    let mut current = Vec::new();
    serve(|request| {
        Ok(match request {
            Request::Encode { data, pairs } => json!({ "texts": models.encode(data, pairs)? }),
            Request::Texts { texts } => {
                let vocabulary = models.checkpoint.config.decoder.vocab_size;
                let known = texts.iter().flatten().all(|&id| (id as usize) < vocabulary);
                ensure!(known, "a token beyond the vocabulary of {vocabulary}");
                current = texts;
                json!({ "tokens": current.iter().map(Vec::len).sum::<usize>() })
            }
            Request::Score { precision, shared, budget, repeats, rewards } => {
                ensure!(repeats > 0, "`repeats` begins at 1");
                let Some(model) = models.get(precision)? else {
                    return Ok(json!({ "seconds": null }));
                };
                let mut seconds = 0.0;
                let mut last = None;
                for _ in 0..repeats {
                    let run = score(model, &current, shared, budget)?;
                    seconds += run.seconds;
                    last = Some(run);
                }
                let last = last.context("one run at least")?;
                let rewards = if rewards { json!(last.rewards) } else { Value::Null };
                json!({
                    "seconds": seconds / f64::from(repeats),
                    "computed": last.computed,
                    "rewards": rewards,
                })
            }
        })
    })
}

fn main() -> anyhow::Result<()> {
    // `cargo bench` without a name runs every bench.
    let Some(model) = value::<PathBuf>("--model")? else {
        println!("nothing to measure: give --model and --data");
        return Ok(());
    };
    let mut models = Models::open(&model, value("--threads")?.unwrap_or(0))?;
    if is_given("--serve-stdin") {
        return answer_requests(models);
    }
    let data = value("--data")?.context("--data FILE")?;
    let texts = models.encode(data, value("--pairs")?.unwrap_or(128))?;
    let rounds = value("--rounds")?.unwrap_or(5);
    let budget = value("--budget")?.unwrap_or(BUDGET);
    if let Some(members) = value::<String>("--members")? {
        let threads = value("--threads")?.unwrap_or(0);
        let model = models.checkpoint.folder.clone();
        return compare_ensemble(model, &members, threads, &texts, (rounds, budget));
    }
    let arrangements: Vec<(Precision, bool)> = [Precision::F32, Precision::Bf16]
        .into_iter()
        .flat_map(|precision| [(precision, false), (precision, true)])
        .collect();
    let mut runs: Vec<Vec<Run>> = arrangements.iter().map(|_| Vec::new()).collect();
    // The first round warms up.
    for round in 0..=rounds {
        for (&(precision, shared), runs) in arrangements.iter().zip(&mut runs) {
            let Some(model) = models.get(precision)? else { continue };
            let run = score(model, &texts, shared, budget)?;
            if round > 0 {
                runs.push(run);
            }
        }
    }
    let tokens: usize = texts.iter().map(Vec::len).sum();
    println!("{} texts, {tokens} tokens, medians of {rounds} rounds", texts.len());
    for ((precision, shared), mut runs) in arrangements.into_iter().zip(runs) {
        runs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let Some(median) = runs.get(runs.len() / 2) else {
            println!("{}: not on this processor, or no rounds", precision.name());
            continue;
        };
        println!(
            "{}, prefixes {}: {:.0} tokens/s, {} tokens computed",
            precision.name(),
            if shared { "shared" } else { "apart" },
            tokens as f64 / median.seconds,
            median.computed
        );
    }
    Ok(())
}
