//! Training that is killed and started again ends in the weights of a run that was not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tempfile::TempDir;

const KILLS: usize = 20;
/// Three epochs over the pairs that the weights of two files give.
const STEPS: u64 = 171;

struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, numbers) in [("pairs.jsonl", 0..120), ("more_pairs.jsonl", 120..240)] {
            let pairs: String = numbers.map(|n| format!("{}\n", pair(n))).collect();
            fs::write(folder.path().join(name), pairs).unwrap();
        }
        Self(folder)
    }

    fn output(&self) -> PathBuf {
        self.0.path().join("output")
    }

    fn progress(&self, file: &str) -> PathBuf {
        self.0.path().join("output.progress").join(file)
    }

    fn command(&self, learning_rate: f64) -> Command {
        let settings = format!(
            "output = {:?}
threads = 2
recompute = true
[start.scratch]
vocab_size = 300
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128
[head]
latent_dim = 4
[data]
files = [{{ path = {:?}, weight = 0.6 }}, {{ path = {:?}, weight = 1.3 }}]
train_pairs = 160
max_tokens = 128
[optimiser]
learning_rate = {learning_rate:?}
[schedule]
epochs = 9
pairs_per_step = 8
micro_batch_tokens = 200
[evaluation]
every_steps = 7
pairs = 16
keep_best = true
[progress]
every_steps = 2
",
            self.output(),
            self.0.path().join("pairs.jsonl"),
            self.0.path().join("more_pairs.jsonl")
        );
        let file = self.0.path().join("settings.toml");
        fs::write(&file, settings).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.arg("fit").arg("--config").arg(file);
        command
    }

    fn finish(&self) -> Output {
        let done = self.command(1e-2).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done
    }

    fn weights(&self) -> Vec<u8> {
        fs::read(self.output().join("model.safetensors")).unwrap()
    }
}

fn pair(n: usize) -> Value {
    let (right, wrong) = (format!("{n} is {}.", n % 2), format!("{n} is {}.", 1 - n % 2));
    json!({"prompt": format!("Is {n} odd?"), "chosen": right, "rejected": wrong})
}

fn log(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The log of a finished run has every step and every evaluation once.
fn assert_complete(log: &[Value]) {
    let is_evaluation = |record: &&Value| record.get("evaluation").is_some();
    let step = |record: &Value| record["step"].as_u64().unwrap();
    let steps: Vec<u64> = log.iter().filter(|r| !is_evaluation(r)).map(step).collect();
    assert!(steps.iter().copied().eq(0..STEPS), "{steps:?}");
    let evaluations: Vec<u64> = log.iter().filter(is_evaluation).map(step).collect();
    assert!(evaluations.iter().copied().eq((1..=STEPS / 7).map(|n| 7 * n)), "{evaluations:?}");
}

#[test]
fn killed_at_any_moment_it_ends_in_the_same_weights() {
    let workshop = Workshop::new();
    let finish = || {
        let begun = Instant::now();
        (workshop.finish(), begun.elapsed().as_millis() as u64)
    };
    // The fastest so far: beside other tests the first may take many times as long.
    let mut duration = finish().1;
    let weights = workshop.weights();
    let records = log(&workshop.output().join("log.jsonl"));
    assert_complete(&records);
    assert!(!workshop.progress("").exists());

    let mut random = ChaCha8Rng::seed_from_u64(0);
    let (mut kills, mut resumed) = (0, BTreeSet::new());
    while kills < KILLS {
        fs::remove_dir_all(workshop.output()).unwrap();
        // Sometimes killed more than once before it ends.
        for _ in 0..random.random_range(1..4) {
            let mut child =
                workshop.command(1e-2).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(random.random_range(0..duration)));
            // SIGKILL; a run that has ended already was not killed.
            kills += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let (done, took) = finish();
        duration = duration.min(took);
        let said = String::from_utf8(done.stderr).unwrap();
        resumed.extend(said.lines().filter(|l| l.starts_with("resumed")).map(str::to_owned));
        assert!(workshop.weights() == weights, "other weights after {said}");
        assert_eq!(log(&workshop.output().join("log.jsonl")), records);
    }
    assert!(resumed.len() > 3, "{resumed:?}");
}

#[test]
fn a_state_of_other_settings_is_refused() {
    let workshop = Workshop::new();
    let mut child =
        workshop.command(1e-2).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let state = workshop.progress("state.safetensors");
    while !state.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a state");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let refused = workshop.command(2e-2).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success()
            && said.contains("other settings")
            && said.contains("state.safetensors"),
        "{said}"
    );

    fs::write(&state, "no state").unwrap();
    let refused = workshop.command(1e-2).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("damaged; delete it"), "{said}");
    fs::remove_file(&state).unwrap();
    workshop.finish();
}

/// A learning rate that no model bears.
#[test]
fn a_loss_that_is_not_finite_stops_and_names_the_pairs() {
    let workshop = Workshop::new();
    let failed = workshop.command(1e30).output().unwrap();
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(
        !failed.status.success() && said.contains("step ") && said.contains("pairs.jsonl, line "),
        "{said}"
    );
    assert!(!workshop.output().exists());
}
