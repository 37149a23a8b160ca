//! `trainer fit`: from preference pairs to a checkpoint.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::config::{FitConfig, Start};
use super::epoch::Epochs;
use super::progress::Progress;
use super::record::{CARD_FILE, Finished, FitReport, TRAINING_FILE, TrainingRecord};
use super::trainable::Trained;
use super::training_loop::Descent;
use super::{adapter, card, random_init as scratch};
use crate::checkpoint::{
    CONFIG_FILE, Checkpoint, CheckpointError, CheckpointFiles, FolderTensors, HeadConfig,
    ModelConfig, StandardHead, TensorSource, check_output, write_checkpoint,
};
use crate::train::accuracy::{
    BaselineReport, PairAccuracy, PairEvaluation, TextScorer, baseline_of,
};
use crate::train::data::{
    DROPPED_FILE, DataFile, EncodedPair, LeftOut, Split, data_files, dropped_file, encode_pairs,
    name_left_out, read_pairs,
};
use crate::train::init::{init_head, text_files};

/// Trains a reward model and writes its checkpoint.
///
/// # Errors
/// Data or a starting model that cannot be read, settings that contradict each other, a loss that
/// is not finite (names the step), or a folder that cannot be written.
pub fn fit(config: &FitConfig) -> anyhow::Result<FitReport> {
    let started = Instant::now();
    config.check()?;
    let files = config.data.paths();
    // Better now than after hours of training.
    check_output(&config.output, &files)?;
    let split = Split { seed: config.seed, train_pairs: config.data.train_pairs };
    let (pairs, bad_lines) = read_pairs(&files, config.data.bad_lines)?;
    let (train, held_out) = split.apply(pairs);
    anyhow::ensure!(!train.is_empty(), "data.train_pairs: no pair is left to train on");

    let staging = tempfile::tempdir().context("a temporary folder")?;
    let start = match &config.start {
        Start::Folder(folder) => folder.clone(),
        Start::Scratch(settings) => {
            let folder = staging.path().join("start");
            scratch::create(&folder, settings, &config.head.head(), &train, config.seed)?;
            folder
        }
    };
    let start = with_head(start, staging.path(), config)?;
    let checkpoint = Checkpoint::open(&start)?;
    let limit = checkpoint.encoder.limit();
    anyhow::ensure!(
        config.data.max_tokens <= limit,
        "data.max_tokens: {} exceeds the model's context of {limit}",
        config.data.max_tokens
    );
    let limits = config.data.limits();
    let (mut train, train_dropped) = encode_pairs(&checkpoint.encoder, &train, limits)?;
    let (held_out, held_out_dropped) = encode_pairs(&checkpoint.encoder, &held_out, limits)?;
    anyhow::ensure!(
        !train.is_empty(),
        "data: no training pair can be used ({train_dropped}){}",
        train_dropped.pairs.first().map_or(String::new(), |first| format!("; {first}"))
    );
    let left_out: Vec<LeftOut> =
        [bad_lines.as_slice(), &train_dropped.pairs, &held_out_dropped.pairs].concat();
    name_left_out(&left_out);
    eprintln!(
        "{} pairs to train on (dropped: {train_dropped}), {} held out (dropped: \
         {held_out_dropped}), {} lines are no pairs",
        train.len(),
        held_out.len(),
        bad_lines.len()
    );

    let epoch_pairs = Epochs::new(&train, &config.data.files, config.seed)?.pairs();
    if epoch_pairs != train.len() {
        eprintln!("by the weights of their files, an epoch has {epoch_pairs} pairs");
    }

    let flipped = exchange(&mut train, config.data.label_noise, config.seed);
    let data = data_files(&files)?;
    let mut progress = Progress::open(&config.output, fingerprint(config, &data, &checkpoint)?)?;
    let mut model = Trained::load(config, &checkpoint, &train)?;
    let mut report = FitReport {
        train_pairs: train.len(),
        train_dropped,
        label_noise_pairs: flipped,
        bad_lines: bad_lines.len(),
        held_out_pairs: held_out.len(),
        held_out_dropped,
        parameters: model.parameter_count(),
        steps: 0,
        epochs: Vec::new(),
        best_step: None,
        held_out: None,
        calibration_error: None,
        latents: None,
        seconds: 0.0,
    };
    Descent { config, checkpoint: &checkpoint, train: &train, held_out: &held_out }.run(
        &mut model,
        &mut progress,
        &mut report,
    )?;

    let tensors = model.export(&checkpoint)?;
    let adapter = match (model.adapters()?, &config.start) {
        (Some((lora, adapters)), Start::Folder(base)) => {
            let decoder = &checkpoint.config.decoder;
            adapter::files(&lora, &adapters, decoder, &base.to_string_lossy())?
        }
        _ => Vec::new(),
    };
    // What was trained, with its gradients and moments, has the room that measuring needs.
    drop(model);
    // The start's normalisation was of its own rewards; and baseline and evaluation are of raw ones.
    let stored = ModelConfig { reward_scale: None, ..checkpoint.config.clone() };
    let contents = CheckpointFiles {
        config: &stored,
        other_keys: crate::train::init::other_keys(&start, config.weight_type)?,
        tensors: &tensors,
        weight_type: config.weight_type,
        files: text_files(&start)?,
    };
    write_checkpoint(&config.output, &contents, |folder| {
        let finished = Finished::measure(folder, config, &held_out)?;
        if let Some(found) = &finished.evaluation {
            report.held_out = Some(found.all.clone());
            report.calibration_error = Some(found.calibration_error);
            report.latents = found.latents.clone();
        }
        report.seconds = started.elapsed().as_secs_f64();
        let record = TrainingRecord {
            config: config.clone(),
            data: data.clone(),
            split,
            report: report.clone(),
        };
        let mut files = vec![
            (TRAINING_FILE.to_owned(), serde_json::to_vec_pretty(&record)?),
            (CARD_FILE.to_owned(), card::write(&record, &finished)?.into_bytes()),
            (DROPPED_FILE.to_owned(), dropped_file(&left_out)?),
        ];
        files.extend(adapter);
        if let Some(baseline) = &finished.report {
            files.push(baseline.file()?);
        }
        files.extend(progress.finished()?);
        if let Some(accuracy) = &report.held_out {
            files.push((CONFIG_FILE.to_owned(), with_reward_scale(folder, accuracy)?));
        }
        Ok::<_, anyhow::Error>((finished.baseline, files))
    })?;
    progress.remove()?;
    Ok(report)
}

/// The folder itself where it has the head that is asked for, else a copy with a fresh one.
fn with_head(start: PathBuf, staging: &Path, config: &FitConfig) -> anyhow::Result<PathBuf> {
    let head = config.head.head();
    let same = match (&ModelConfig::read(&start)?.head, &head) {
        // Whatever its tensors are called.
        (
            HeadConfig::Inform { latent_dim: found_dim, decode: found_decode, .. },
            HeadConfig::Inform { latent_dim, decode, .. },
        ) => (found_dim, found_decode) == (latent_dim, decode),
        // The configuration of a language model says nothing of a head. Heads of other names, with a bias or with
        // several labels are not trained on.
        (HeadConfig::Standard(_), HeadConfig::Standard(_)) => {
            let tensors = FolderTensors::open(&start)?;
            tensors.shape("score.weight").is_some_and(|shape| shape.first() == Some(&1))
                && tensors.shape("score.bias").is_none()
        }
        _ => false,
    };
    if same {
        return Ok(start);
    }
    name_head(&start)?;
    let folder = staging.join("headed");
    init_head(&start, &folder, &head, config.seed)?;
    Ok(folder)
}

/// Says which trained head of a model is replaced by a fresh one, where it has one.
fn name_head(start: &Path) -> anyhow::Result<()> {
    let (config, tensors) = (ModelConfig::read(start)?, FolderTensors::open(start)?);
    let found = match &config.head {
        HeadConfig::Inform { encode_head_prefix, .. } => {
            Some(format!("{encode_head_prefix}.weight"))
        }
        HeadConfig::Standard(standard) => {
            let head = StandardHead::find(standard, config.decoder.hidden_size, &tensors);
            head.ok().map(|head| head.weight)
        }
    };
    if let Some(head) = found.filter(|head| tensors.shape(head).is_some()) {
        eprintln!(
            "{}: its reward head `{head}` is not of the form that `head` asks for; a fresh one is trained",
            start.display()
        );
    }
    Ok(())
}

/// Stream of the generator that chooses pairs for label noise: another than the order's.
const LABEL_NOISE: u64 = 1;

/// Exchanges the answers of a share of the pairs, and says of how many.
fn exchange(pairs: &mut [EncodedPair], share: f64, seed: u64) -> usize {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(LABEL_NOISE);
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.shuffle(&mut random);
    order.truncate((share * pairs.len() as f64).round() as usize);
    for &index in &order {
        let pair = &mut pairs[index];
        std::mem::swap(&mut pair.chosen, &mut pair.rejected);
    }
    order.len()
}

impl Finished {
    /// Opens the folder as the server does, evaluates it, and scores the baseline.
    fn measure(
        folder: &Path,
        config: &FitConfig,
        held_out: &[EncodedPair],
    ) -> anyhow::Result<Self> {
        let stored = Checkpoint::open(folder)?;
        let compute = config.compute();
        let features = match config.mode.trains_decoder() {
            true => None,
            false => config.features.folder.as_deref(),
        };
        let depth = config.depth(&stored.config.decoder)?;
        let mut scorer = TextScorer::load(&stored, &compute, features, depth)?;
        let scores = scorer.pair_scores(held_out)?;
        let evaluation =
            (!held_out.is_empty()).then(|| PairEvaluation::from_scores(held_out, &scores));
        let samples = &held_out[..held_out.len().min(config.baseline.samples)];
        let latent_dim = stored.config.head.latent_dim().filter(|_| !samples.is_empty());
        let baseline = latent_dim.map(|dimension| {
            baseline_of(
                scores.iter().step_by(2).take(samples.len()),
                dimension,
                samples.iter().map(|pair| Some(pair.prompt)).collect(),
                &stored.weights,
                format!("chosen answers of {} held-out pairs", samples.len()),
            )
        });
        let report = baseline
            .as_ref()
            .and_then(|baseline| BaselineReport::of(baseline, Vec::new(), compute.dtype()));
        Ok(Self { evaluation, baseline, report, weights: stored.weights })
    }
}

/// `config.json` with the mean and standard deviation of the rewards, for whoever normalises them.
fn with_reward_scale(folder: &Path, accuracy: &PairAccuracy) -> anyhow::Result<Vec<u8>> {
    let file = folder.join(CONFIG_FILE);
    let text = std::fs::read(&file).map_err(CheckpointError::io(&file))?;
    let mut keys: Map<String, Value> = serde_json::from_slice(&text)?;
    keys.insert("mean".to_owned(), json!(accuracy.reward_mean));
    keys.insert("std".to_owned(), json!(accuracy.reward_std));
    Ok(serde_json::to_vec_pretty(&keys)?)
}

/// Of everything that the steps depend on.
fn fingerprint(
    config: &FitConfig,
    data: &[DataFile],
    checkpoint: &Checkpoint,
) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&(config.decisive(), data))?);
    hash.update(&checkpoint.weights);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
