//! `trainer baseline`: SFT answers of a file become a checkpoint's baseline, and the server uses them.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::golden::golden;
use crate::support::server::{Server, bits};
use flate2::{Compression, write::GzEncoder};
use inform::checkpoint::{BASELINE_FILE, Baseline, Checkpoint, CheckpointError};
use inform::train::{BaselineReport, CALIBRATION_FILE};
use serde_json::{Value, json};
use tempfile::TempDir;

const CARD: &str = "README.md";

/// A folder with a copy of a checkpoint in it.
struct Workshop {
    folder: TempDir,
    model: PathBuf,
}

impl Workshop {
    fn new(checkpoint: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        for entry in fs::read_dir(checkpoint).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
        Self { folder, model }
    }

    fn file(&self, name: &str, rows: &[Value]) -> PathBuf {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let file = self.folder.path().join(name);
        if name.ends_with(".gz") {
            let mut zipped = GzEncoder::new(File::create(&file).unwrap(), Compression::default());
            zipped.write_all(text.as_bytes()).unwrap();
            zipped.finish().unwrap();
        } else {
            fs::write(&file, text).unwrap();
        }
        file
    }

    fn trainer(&self, files: &[PathBuf], more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.arg("baseline").arg("--model").arg(&self.model).arg("--data").args(files);
        command.args(more).output().unwrap()
    }

    fn baseline(&self, files: &[PathBuf], more: &[&str]) -> (Baseline, BaselineReport) {
        let output = self.trainer(files, more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = serde_json::from_slice::<BaselineReport>(&output.stdout).unwrap();
        let kept = serde_json::from_slice(&self.bytes(CALIBRATION_FILE).unwrap()).unwrap();
        assert_eq!(printed, kept);
        (Checkpoint::open(&self.model).unwrap().baseline.unwrap(), printed)
    }

    fn fails(&self, files: &[PathBuf], more: &[&str], expected: &[&str]) {
        let names = [BASELINE_FILE, CALIBRATION_FILE, CARD];
        let before = names.map(|name| self.bytes(name));
        let output = self.trainer(files, more);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(!error.contains("panicked"), "{error}");
        for expected in expected {
            assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        }
        assert_eq!(names.map(|name| self.bytes(name)), before);
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.model.join(name)).ok()
    }

    fn card(&self) -> String {
        String::from_utf8(self.bytes(CARD).unwrap()).unwrap()
    }
}

fn question(number: usize) -> String {
    let things = ["kettle", "piano", "tent", "bicycle", "map", "attic", "kite"];
    format!("How do I keep {number} of my {} dry?", things[number % things.len()])
}

fn answer(number: usize) -> String {
    let advice = ["Cover it well", "Bring it inside", "Wipe it each evening", "Ask a neighbour"];
    format!("{}. {}", advice[number % advice.len()], "It takes a while. ".repeat(number % 5))
}

/// The same answer in one of the forms that files have, and as the server takes it.
fn row(number: usize) -> (Value, Value) {
    let (question, answer) = (question(number), answer(number));
    let user = json!({"role": "user", "content": question});
    let reply = json!({"role": "assistant", "content": answer});
    let row = match number % 4 {
        0 => json!({"prompt": question, "response": answer}),
        1 => json!({"prompt": [user], "response": answer, "step": 3}),
        2 => json!({"messages": [user, reply]}),
        _ => {
            let (instruction, input) = question.split_once("my ").unwrap();
            let whole = format!("{instruction}\n\n{input}");
            let row = json!({"instruction": instruction, "input": input, "output": answer});
            return (row, json!({"prompt": whole, "response": answer}));
        }
    };
    (row, json!({"messages": [user, reply]}))
}

fn rows(count: usize) -> (Vec<Value>, Vec<Value>) {
    (0..count).map(row).unzip()
}

fn latents(baseline: &Baseline) -> Vec<Vec<u32>> {
    let rows = baseline.latents.chunks_exact(baseline.dimension);
    rows.map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

#[test]
fn its_latents_are_the_servers_which_then_compares_runs_with_them() {
    let workshop = Workshop::new(Path::new("configs/demo"));
    let (weights, tensors) =
        (Checkpoint::open(&workshop.model).unwrap().weights, workshop.bytes("model.safetensors"));
    let old_card = workshop.card();
    let (old_card, _) = old_card.split_once("<!-- baseline -->").unwrap();
    let (rows, inputs) = rows(300);
    let files =
        [workshop.file("one.jsonl.gz", &rows[..200]), workshop.file("two.jsonl", &rows[200..])];
    let (baseline, report) = workshop.baseline(&files, &[]);
    assert_eq!(Checkpoint::open(&workshop.model).unwrap().weights, weights);
    assert_eq!(workshop.bytes("model.safetensors"), tensors);
    assert_eq!(baseline.source, "300 of 300 answers of one.jsonl.gz, two.jsonl");
    assert_eq!(report.data.len(), 2);

    let server = Server::start(&["--model", workshop.model.to_str().unwrap()]);
    let body = json!({"inputs": inputs, "role": "eval"});
    let scored = server.reward(&body);
    let expected: Vec<_> = (0..inputs.len()).map(|index| bits(&scored, index)).collect();
    let rewards = baseline.rewards.as_ref().unwrap().iter().map(|reward| reward.to_bits());
    let found: Vec<_> = rewards.zip(latents(&baseline)).collect();
    assert!(found == expected);
    assert_eq!(server.read("/info")["baseline_samples"], 300);

    // Prompts are known: the answers themselves are at no distance from those of their prompts.
    let window = report.calibration.window;
    server.reward(&json!({"inputs": inputs[..window], "run": "same", "step": 1}));
    let evaluation = server.post("/runs/same/evaluate", &json!({})).ok();
    assert_eq!(evaluation["baseline"], "checkpoint");
    assert_eq!(evaluation["paired_samples"], window);
    assert_eq!(evaluation["paired_distance"], 0.0);

    // What the checkpoint says of windows is what the server judges them by.
    let calibration = &report.calibration;
    let fixed = &calibration.csi[0];
    assert_eq!(fixed.eps, evaluation["eps"].as_f64());
    let expected = [
        (fixed.per_sample.map(|csi| csi.p95), "csi_null_p95"),
        (calibration.energy.map(|energy| energy.p95), "energy_null_p95"),
        (calibration.mop_p95, "mop_null_p95"),
    ];
    for (expected, field) in expected {
        assert_eq!(expected, evaluation[field].as_f64(), "{field}");
        assert!(expected.is_some(), "{field}");
    }
    let settings = json!({"csi": {"eps_mode": "calibrated"}});
    server.put("/runs/other/config", &settings).ok();
    server.reward(&json!({"inputs": inputs[..window], "run": "other", "step": 1}));
    let evaluation = server.post("/runs/other/evaluate", &json!({})).ok();
    let calibrated = &calibration.csi[1];
    assert_eq!(calibrated.eps, evaluation["eps"].as_f64());
    assert_eq!(calibrated.per_sample.map(|csi| csi.p95), evaluation["csi_null_p95"].as_f64());
    assert_ne!(calibrated.eps, fixed.eps);

    // The rest of the card stays, and the part on the baseline is there once.
    let card = workshop.card();
    assert!(card.starts_with(old_card.trim_end()), "{card}");
    let (again, _) = workshop.baseline(&files[1..], &["--threads", "1"]);
    assert_eq!(latents(&again), latents(&baseline)[200..]);
    let renewed = workshop.card();
    assert!(renewed.starts_with(old_card.trim_end()), "{renewed}");
    assert_eq!(renewed.matches("## SFT baseline").count(), 1, "{renewed}");
    assert!(card.contains("300 of 300 answers") && !renewed.contains("300 of 300"), "{renewed}");
    assert!(renewed.contains("| Latents | 100 of 100 answers of two.jsonl, scored in f32 |"));
}

#[test]
fn of_many_answers_some_are_drawn_by_the_seed() {
    // Without a card, and without a record of a training.
    let workshop = Workshop::new(&golden("tiny/linear"));
    let (rows, _) = rows(60);
    let file = [workshop.file("sft.jsonl", &rows)];
    let (all, _) = workshop.baseline(&file, &[]);
    let all = latents(&all);
    let (some, report) = workshop.baseline(&file, &["--samples", "20"]);
    assert_eq!(some.source, "20 of 60 answers of sft.jsonl");
    assert_eq!(report.calibration.samples, 20);
    let drawn = latents(&some);
    let place = |latent| all.iter().position(|other| other == latent).unwrap();
    let places: Vec<usize> = drawn.iter().map(place).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    assert_eq!(latents(&workshop.baseline(&file, &["--samples", "20"]).0), drawn);
    let (other, _) = workshop.baseline(&file, &["--samples", "20", "--seed", "1"]);
    assert_ne!(latents(&other), drawn);
    assert!(workshop.card().starts_with("# Reward model"), "{}", workshop.card());

    // Prompts are kept where all are known.
    assert_eq!(other.prompts.unwrap().len(), 20);
    let mut rows = rows;
    rows[7] = json!({"text": "<s>[INST] Hello [/INST] Hello!"});
    let (mixed, _) = workshop.baseline(&[workshop.file("mixed.jsonl", &rows)], &[]);
    assert_eq!((mixed.len(), mixed.prompts), (60, None));
}

#[test]
fn a_baseline_of_other_weights_is_replaced() {
    let workshop = Workshop::new(&golden("tiny/linear"));
    let file = [workshop.file("sft.jsonl", &rows(20).0)];
    let (mut foreign, _) = workshop.baseline(&file, &[]);
    let expected = latents(&foreign);
    foreign.weights = "sha256:other".to_owned();
    fs::write(workshop.model.join(BASELINE_FILE), foreign.to_bytes().unwrap()).unwrap();
    let refused = Checkpoint::open(&workshop.model).unwrap_err();
    assert!(matches!(refused, CheckpointError::ForeignBaseline { .. }), "{refused}");
    assert_eq!(latents(&workshop.baseline(&file, &[]).0), expected);
}

#[test]
fn bad_lines_are_named_and_refused_or_left_out() {
    let workshop = Workshop::new(&golden("tiny/linear"));
    let (good, _) = rows(20);
    workshop.baseline(&[workshop.file("sft.jsonl", &good)], &[]);
    let long = "very ".repeat(20_000);
    for (number, (bad, reason)) in [
        (json!(["a", "b"]), "expected an object"),
        (json!({"step": 1}), "needs `prompt` and `response`"),
        (json!({"response": "Yes."}), "`response` needs its `prompt`"),
        (json!({"output": "Yes."}), "`output` needs its `instruction`"),
        (json!({"prompt": "Q", "response": 5}), "`response`: expected text"),
        (json!({"prompt": 5, "response": "A"}), "`prompt`: expected a list of messages"),
        (json!({"prompt": "Q", "response": " "}), "the answer is empty"),
        (json!({"messages": []}), "does not end with the assistant's answer"),
        (json!({"messages": [{"role": "user", "content": "Q"}]}), "does not end with"),
        (json!({"messages": [{"role": "assistant"}]}), "`messages`: a message without `content`"),
        (json!({"prompt": "Q", "response": long}), "tokens, more than the model's context"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut rows = good.clone();
        rows[4] = bad;
        let file = workshop.file(&format!("bad{number}.jsonl"), &rows);
        let place = format!("{}, line 5: ", file.display());
        workshop.fails(std::slice::from_ref(&file), &[], &[&place, reason]);
        let output = workshop.trainer(std::slice::from_ref(&file), &["--drop-bad-lines"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(said.contains(&format!("left out: {place}")) && said.contains(reason), "{said}");
        assert_eq!(Checkpoint::open(&workshop.model).unwrap().baseline.unwrap().len(), 19);
    }
    let file = workshop.file("none.jsonl", &[json!({})]);
    workshop.fails(&[file], &["--drop-bad-lines"], &["no answer in", "none.jsonl, line 1"]);
    let missing = workshop.folder.path().join("missing.jsonl");
    workshop.fails(&[missing], &[], &["missing.jsonl", "No such file"]);
    let file = workshop.file("good.jsonl", &good);
    workshop.fails(&[file], &["--samples", "0"], &["--samples: must be at least 1"]);
}

#[test]
fn a_head_without_latents_has_no_baseline() {
    let workshop = Workshop::new(&golden("tiny/standard"));
    let file = workshop.file("sft.jsonl", &rows(5).0);
    workshop.fails(&[file], &[], &["a standard reward head has no latents"]);
}
