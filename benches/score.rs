//! Scoring throughput on real pairs, in one process: arrangements are interleaved round by round, and
//! medians are printed.
//!
//!     cargo bench --bench score -- --model DIR --data PAIRS.jsonl.gz [--pairs 128] [--rounds 5]
//!
//! `--json` prints seconds by arrangement, `--print-ids` the token ids of the texts, for
//! `benches/peers/score.py`.
//!
//! Tokens a second are real ones: shared tokens count as often as they stand in the texts.

#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use inform::checkpoint::{Checkpoint, Input};
use inform::model::{RewardModel, Scorer};
use inform::ops::Packing;
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::read_pairs;

struct Arguments {
    model: PathBuf,
    data: PathBuf,
    pairs: usize,
    rounds: usize,
    budget: usize,
    threads: usize,
}

fn arguments() -> anyhow::Result<Arguments> {
    let given: Vec<String> = std::env::args().collect();
    let find = |name: &str| {
        let at = given.iter().position(|argument| argument == name)?;
        given.get(at + 1).cloned()
    };
    let number = |name: &str, default: usize| -> anyhow::Result<usize> {
        find(name).map_or(Ok(default), |value| value.parse().with_context(|| name.to_owned()))
    };
    Ok(Arguments {
        model: find("--model").context("--model DIR")?.into(),
        data: find("--data").context("--data FILE")?.into(),
        pairs: number("--pairs", 128)?,
        rounds: number("--rounds", 5)?,
        budget: number("--budget", 8192)?,
        threads: number("--threads", 0)?,
    })
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

fn main() -> anyhow::Result<()> {
    // `cargo test` runs a bench target to see that it starts.
    if !std::env::args().any(|argument| argument == "--model") {
        println!("nothing to measure: give --model and --data");
        return Ok(());
    }
    let arguments = arguments()?;
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let pairs = read_pairs(std::slice::from_ref(&arguments.data))?;
    let texts: Vec<Vec<u32>> = pairs
        .into_iter()
        .take(arguments.pairs)
        .flat_map(|pair| [pair.chosen, pair.rejected])
        .map(|text| Ok(checkpoint.encoder.encode(&Input::Messages(text), true)?.ids))
        .collect::<anyhow::Result<_>>()?;
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let flag = |name: &str| std::env::args().any(|argument| argument == name);
    if flag("--print-ids") {
        println!("{}", serde_json::to_string(&texts)?);
        return Ok(());
    }
    let json = flag("--json");
    let computed: usize = batches(&texts, arguments.budget)
        .iter()
        .filter_map(|batch| Some(Packing::shared(batch)?.rows()))
        .sum();

    let mut models = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        let Ok(ops) = CpuOps::new(arguments.threads, precision) else {
            eprintln!("{}: not on this processor", precision.name());
            continue;
        };
        let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors)?;
        models.push((precision.name(), model));
    }
    eprintln!(
        "{} texts, {tokens} tokens, {computed} of them computed when prefixes are shared",
        texts.len()
    );
    let mut seconds: Vec<(String, Vec<f64>)> = Vec::new();
    for round in 0..=arguments.rounds {
        for (name, model) in &models {
            for share in [false, true] {
                let started = Instant::now();
                for batch in batches(&texts, arguments.budget) {
                    let packing =
                        if share { Packing::shared(&batch) } else { Packing::new(&batch) };
                    model.score_packed(&packing.context("an empty batch")?)?;
                }
                let elapsed = started.elapsed().as_secs_f64();
                let label = format!("{name}, prefixes {}", if share { "shared" } else { "apart" });
                // The first round warms up.
                if round > 0 {
                    match seconds.iter_mut().find(|(known, _)| *known == label) {
                        Some((_, times)) => times.push(elapsed),
                        None => seconds.push((label, vec![elapsed])),
                    }
                }
            }
        }
    }
    let medians: BTreeMap<String, f64> = seconds
        .into_iter()
        .map(|(label, mut times)| {
            times.sort_by(f64::total_cmp);
            (label, times[times.len() / 2])
        })
        .collect();
    if json {
        println!("{}", serde_json::to_string(&medians)?);
        return Ok(());
    }
    for (label, median) in medians {
        println!(
            "{label}: {:.0} tokens/s (median of {})",
            tokens as f64 / median,
            arguments.rounds
        );
    }
    Ok(())
}
