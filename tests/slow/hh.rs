//! Real text under real concurrency: the 4,624 answers of HH-RLHF harmless through `/reward`, one text a
//! request from 64 clients, equal bit for bit those of one offline pass, and are not computed again.
//!
//! The data is not part of this repository. The tests look for it in `../shared/data/preferences` or
//! where `PREFERENCES_FOLDER` says, and are skipped without it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::support::server::{Server, bits, float};
use inform::checkpoint::{Checkpoint, Input, Message};
use inform::model::{RewardModel, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::{BadLines, TRAINING_FILE, TrainingRecord, read_pairs};
use serde_json::{Value, json};

const CLIENTS: usize = 64;
const DEMO: &str = "configs/demo";

fn data() -> Option<PathBuf> {
    let folder = std::env::var("PREFERENCES_FOLDER")
        .unwrap_or_else(|_| "../shared/data/preferences".to_owned());
    let file = PathBuf::from(folder).join("hh_rlhf_harmless.jsonl.gz");
    if !file.exists() {
        println!("skipped: {} is not here", file.display());
        return None;
    }
    Some(file)
}

fn texts(file: PathBuf) -> Vec<Vec<Message>> {
    let pairs = read_pairs(&[file], BadLines::Refuse).unwrap().0;
    pairs.into_iter().flat_map(|pair| [pair.chosen, pair.rejected]).collect()
}

/// Rewards of one pass over the engineless model, in batches of 32.
fn offline(texts: &[Vec<Message>]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(DEMO.as_ref()).unwrap();
    let model = RewardModel::load(
        CpuOps::new(0, Precision::F32).unwrap(),
        &checkpoint.config,
        &checkpoint.tensors,
    )
    .unwrap();
    let ids: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| checkpoint.encoder.encode(&Input::Messages(text.clone()), true).unwrap().ids)
        .collect();
    ids.chunks(32)
        .flat_map(|batch| {
            let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            model.score(&batch).unwrap()
        })
        .map(|score| score.reward)
        .collect()
}

fn computed(server: &Server) -> f64 {
    let counts = server.metric("inform_tokens_total");
    counts.iter().filter(|(labels, _)| labels.contains("computed")).map(|(_, n)| n).sum()
}

/// The answers to all texts, one a request from all clients.
fn pass(server: &Server, texts: &[Vec<Message>]) -> Vec<Value> {
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let mut answers: Vec<(usize, Value)> = std::thread::scope(|scope| {
        let client = || {
            let mut own = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(messages) = texts.get(index) else { return own };
                let body = json!({"inputs": [{"messages": messages}], "truncate": true});
                own.push((index, server.reward(&body)));
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    println!("{} requests in {:.1} s", answers.len(), started.elapsed().as_secs_f64());
    answers.sort_by_key(|(index, _)| *index);
    assert_eq!(answers.len(), texts.len());
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[test]
fn sixty_four_clients_get_the_rewards_of_an_offline_pass() {
    let Some(file) = data() else { return };
    let texts = texts(file);
    assert_eq!(texts.len(), 4624);
    let server = Server::start(&[]);
    let answers = pass(&server, &texts);
    for (answer, reward) in answers.iter().zip(offline(&texts)) {
        assert_eq!(float(&answer["rewards"][0]).to_bits(), reward.to_bits());
    }
    let metrics = server.get("/metrics").text;
    assert!(metrics.contains("inform_requests_total{code=\"200\",route=\"/reward\"} 4624"));

    // The second time nothing is computed.
    let before = computed(&server);
    assert!(before > 100_000.0);
    let again = pass(&server, &texts);
    assert_eq!(computed(&server), before);
    for (again, first) in again.iter().zip(&answers) {
        assert_eq!(again["items"][0]["cached"], true);
        assert_eq!(bits(again, 0), bits(first, 0));
    }
}

/// The accuracy that the demo's model card and record state is what its evaluation gives.
#[test]
fn the_model_card_states_the_figure_that_eval_gives() {
    let Some(file) = data() else { return };
    let output = Command::new(env!("CARGO_BIN_EXE_trainer"))
        .args(["eval", "--held-out", "--model", DEMO, "--data"])
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let (share, interval) =
        printed.lines().next().and_then(|line| line.split_once(" pairs = ")).unwrap();
    let card = std::fs::read_to_string(format!("{DEMO}/README.md")).unwrap();
    let row = format!("| Held-out pair accuracy | {share} = {interval} |");
    assert!(card.contains(&row), "{row}\n{card}");

    let record = std::fs::read(format!("{DEMO}/{TRAINING_FILE}")).unwrap();
    let record: TrainingRecord = serde_json::from_slice(&record).unwrap();
    let accuracy = record.report.held_out.unwrap();
    assert_eq!(share, format!("{} of {}", accuracy.correct, accuracy.pairs));
}
