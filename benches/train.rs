//! Seconds of full optimiser steps and peak memory, of a checkpoint on random tokens; `benches/peers/train.py` runs it
//! beside PyTorch.
//!
//! `cargo bench --bench train -- --model DIR [--pairs 4] [--tokens 512] [--steps 3] [--dtype f32|bf16] [--threads 2]
//! [--recompute] [--prompt 0] [--apart] [--features]`
//!
//! With `--features`: tokens/s of the pass that computes the features of a frozen backbone, and of scoring the same
//! texts, in turn.

#![allow(missing_docs)]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use inform::checkpoint::Checkpoint;
use inform::config::DeviceChoice;
use inform::model::{RewardModel, standard_normal};
use inform::ops::Packing;
use inform::ops::autograd::AutogradOps;
use inform::ops::cpu::Precision;
use inform::train::{
    AdamW, Backward, Compute, Depth, FeatureStore, Gradients, LossConfig, OptimiserConfig,
    pair_loss,
};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    model: PathBuf,
    #[arg(long, default_value_t = 4)]
    pairs: usize,
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    #[arg(long, default_value_t = 3)]
    steps: usize,
    #[arg(long, default_value = "f32")]
    dtype: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Keep only what enters each layer
    #[arg(long)]
    recompute: bool,
    /// Tokens that both texts of a pair begin with
    #[arg(long, default_value_t = 0)]
    prompt: usize,
    /// Compute those in both texts
    #[arg(long)]
    apart: bool,
    /// Measure features and scores, not training steps
    #[arg(long)]
    features: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    inform::allocator::keep_freed_memory();
    let arguments = Arguments::parse();
    let precision = match arguments.dtype.as_str() {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        other => anyhow::bail!("--dtype: {other}"),
    };
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let dimension = checkpoint.config.head.latent_dim().context("--model: no InfoRM head")?;
    let vocabulary = checkpoint.config.decoder.vocab_size as u32;
    let mut state = 1u32;
    let mut id = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    anyhow::ensure!(arguments.prompt < arguments.tokens, "--prompt: fewer than --tokens");
    let mut texts: Vec<Vec<u32>> =
        (0..2 * arguments.pairs).map(|_| (0..arguments.tokens).map(|_| id()).collect()).collect();
    let (chosen, rejected) = texts.split_at_mut(arguments.pairs);
    for (chosen, rejected) in chosen.iter().zip(rejected) {
        rejected[..arguments.prompt].copy_from_slice(&chosen[..arguments.prompt]);
    }
    if arguments.features {
        return features(&arguments, &checkpoint, precision, &texts);
    }
    let ops = AutogradOps::new(arguments.threads, precision)?;
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors)?;
    let mut optimiser = AdamW::new(OptimiserConfig::default(), model.ops().parameters());
    let packing = if arguments.apart { Packing::new(&texts) } else { Packing::shared(&texts) }
        .context("--tokens: at least 1")?;
    let mut seconds = Vec::new();
    for step in 0..=arguments.steps {
        let noise = standard_normal(0, step as u64, 2 * arguments.pairs * dimension);
        let begun = Instant::now();
        let mut gradients = Gradients::new(model.ops().parameters());
        let loss = |output: &_| {
            Ok(pair_loss(output, &LossConfig::default(), &vec![0.0; arguments.pairs])?)
        };
        Backward {
            model: &model,
            packing: &packing,
            entering: None,
            noise: Some(&noise),
            recompute: arguments.recompute,
        }
        .run(loss, &mut gradients)?;
        let computed = begun.elapsed().as_secs_f64();
        optimiser.step(&gradients, 1.0)?;
        drop(gradients);
        let whole = begun.elapsed().as_secs_f64();
        // The first touches memory that the others find.
        if step > 0 {
            seconds.push(whole);
        }
        eprintln!("step {step}: {whole:.2} s, of which AdamW {:.2}", whole - computed);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    println!("{}", json!({"seconds": seconds, "peak_mb": peak.map(|kb| kb / 1024.0)}));
    Ok(())
}

/// Batches have as many tokens in both passes.
fn features(
    arguments: &Arguments,
    checkpoint: &Checkpoint,
    precision: Precision,
    texts: &[Vec<u32>],
) -> anyhow::Result<()> {
    const BATCH_TOKENS: usize = 8192;
    let mut texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    texts.sort_unstable();
    let compute = Compute::new(DeviceChoice::Cpu, precision, arguments.threads);
    let model = compute.load(checkpoint, 0)?;
    let tokens = (texts.len() * arguments.tokens) as f64;
    for round in 0..=arguments.steps {
        let begun = Instant::now();
        let (config, tensors) = (&checkpoint.config, &checkpoint.tensors);
        let mut store =
            FeatureStore::open(None, config, tensors, model.arithmetic(), Depth::Pooled)?;
        let opened = begun.elapsed().as_secs_f64();
        store.numbers(model.as_ref(), &texts)?;
        let features = begun.elapsed().as_secs_f64() - opened;
        let begun = Instant::now();
        for batch in texts.chunks((BATCH_TOKENS / arguments.tokens).max(1)) {
            model.scorer().score(batch)?;
        }
        let scores = begun.elapsed().as_secs_f64();
        if round > 0 {
            println!(
                "features {:.0} tokens/s, scores {:.0} tokens/s, ratio {:.3}; naming the backbone took {opened:.2} s",
                tokens / features,
                tokens / scores,
                scores / features
            );
        }
    }
    Ok(())
}
