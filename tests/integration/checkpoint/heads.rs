//! Reward heads as other libraries store them, against PyTorch. `tests/golden/heads.py` makes the models.

use std::path::Path;
use std::process::Stdio;

use crate::support::golden::{Golden, golden, relative_error, with_tokenizer};
use crate::support::server::{Server, float, program};
use inform::checkpoint::{
    CheckpointError, FolderTensors, HeadConfig, MemoryTensors, ModelConfig, RewardScale,
    TensorSource,
};
use inform::model::{Parts, RewardModel, Score, Scorer};
use inform::ops::cpu::{CpuOps, Precision};
use serde_json::json;

/// A model of `tests/golden/heads`, whose configuration and tensors a test may change.
struct Model {
    config: ModelConfig,
    tensors: MemoryTensors,
    golden: Golden,
}

impl Model {
    fn open(name: &str) -> Self {
        let folder = golden("heads").join(name);
        let tensors = FolderTensors::open(&folder).unwrap().to_memory().unwrap();
        let golden = Golden::read(&format!("heads/{name}.safetensors"));
        Self { config: ModelConfig::read(&folder).unwrap(), tensors, golden }
    }

    fn with_objectives(name: &str, weights: &[f32]) -> Self {
        let mut model = Self::open(name);
        if let HeadConfig::Standard(head) = &mut model.config.head {
            head.objectives = weights.to_vec();
        }
        model
    }

    fn load(&self) -> Result<RewardModel<CpuOps>, CheckpointError> {
        let ops = CpuOps::new(2, Precision::F32).unwrap();
        RewardModel::load(ops, &self.config, &self.tensors)
    }

    fn scores(&self) -> Vec<Score> {
        let sequences = self.golden.sequences();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        self.load().unwrap().score(&sequences).unwrap()
    }
}

fn rewards(scores: &[Score]) -> Vec<f32> {
    scores.iter().map(|score| score.reward).collect()
}

#[test]
fn value_heads_give_pytorchs_rewards() {
    for name in ["reward", "critic", "own_name", "tokens", "trl", "neox_tokens"] {
        let model = Model::open(name);
        let scores = model.scores();
        let error = relative_error(&rewards(&scores), &model.golden.f32("outputs"));
        assert!(error < 1e-5, "{name}: {error:e}");
        assert!(scores.iter().all(|score| score.latent.is_none() && score.parts == Parts::Whole));
        println!("{name}: relative error {error:.1e}");
    }
}

#[test]
fn several_labels_are_weighted() {
    let weights = [0.5, -2.0, 0.25];
    let mut model = Model::with_objectives("objectives", &weights);
    let expected = model.golden.f32("outputs");
    let scores = model.scores();
    let mut sums = Vec::new();
    for (score, expected) in scores.iter().zip(expected.chunks(3)) {
        let Parts::Objectives(found) = &score.parts else { panic!("{score:?}") };
        assert!(relative_error(found, expected) < 1e-5);
        sums.push(expected.iter().zip(weights).map(|(value, weight)| value * weight).sum());
    }
    assert!(relative_error(&rewards(&scores), &sums) < 1e-5);

    // The normalisation is of the reward, not of what it is made of.
    model.config.reward_scale = Some(RewardScale { mean: 0.5, std: 2.0 });
    let normalised = model.scores();
    for (normalised, score) in normalised.iter().zip(&scores) {
        assert_eq!(normalised.parts, score.parts);
        assert_eq!(normalised.reward, (score.reward - 0.5) / 2.0);
    }
}

#[test]
fn a_head_that_is_not_clear_is_refused() {
    let refused = |model: &Model, parts: &[&str]| {
        let error = model.load().err().unwrap().to_string();
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error:?}");
        }
    };
    let labels = ["3", "0 helpfulness, 1 correctness, 2 brevity", "objectives.weights"];
    refused(&Model::open("objectives"), &labels);
    refused(&Model::with_objectives("objectives", &[1.0, 2.0]), &["found 2", "has 3"]);
    refused(&Model::with_objectives("tokens", &[1.0, 2.0]), &["found 2", "has 1"]);

    let mut two = Model::open("trl");
    let values = two.tensors.f32("v_head.summary.weight", &[1, 16]).unwrap();
    two.tensors.insert("value_head.weight", &[1, 16], values);
    refused(&two, &["value_head, v_head.summary", "value_head_prefix"]);

    let mut narrow = Model::open("critic");
    narrow.tensors.insert("value_head.weight", &[1, 15], vec![0.0; 15]);
    refused(&narrow, &["value_head.weight", "[1, 15]", "[1, 16]"]);
    let mut short = Model::open("trl");
    short.tensors.insert("v_head.summary.bias", &[2], vec![0.0; 2]);
    refused(&short, &["v_head.summary.bias", "[2]", "[1]"]);
}

#[test]
fn a_folder_without_a_head_says_what_was_looked_for() {
    let folder = golden("gguf/model.gguf");
    let config = ModelConfig::read(&folder).unwrap();
    let tensors = FolderTensors::open(&folder).unwrap();
    let ops = CpuOps::new(1, Precision::F32).unwrap();
    let error = RewardModel::load(ops, &config, &tensors).err().unwrap().to_string();
    let names = "`score.weight`, `value_head.weight`, `v_head.summary.weight`, `classifier.weight`";
    for part in ["model.gguf", names] {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
}

/// The names of a model's class say nothing of its family: `model_type` does.
#[test]
fn a_class_that_names_no_family_needs_a_known_type() {
    let scratch = tempfile::tempdir().unwrap();
    let keys = std::fs::read_to_string(golden("heads/critic/config.json")).unwrap();
    let write = |text: &str| std::fs::write(scratch.path().join("config.json"), text).unwrap();
    write(&keys);
    ModelConfig::read(scratch.path()).unwrap();
    write(&keys.replace(r#""model_type": "llama""#, r#""model_type": "mamba""#));
    let error = ModelConfig::read(Path::new(scratch.path())).unwrap_err().to_string();
    assert!(error.contains("CriticModel") && error.contains("architectures"), "{error}");
}

#[test]
fn more_labels_than_there_can_be_are_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    let keys = std::fs::read_to_string(golden("heads/critic/config.json")).unwrap();
    let keys = keys.replacen('{', r#"{"num_labels": 1000000000000,"#, 1);
    std::fs::write(scratch.path().join("config.json"), keys).unwrap();
    let error = ModelConfig::read(scratch.path()).unwrap_err().to_string();
    assert!(error.contains("num_labels") && error.contains("65536"), "{error}");
}

/// Every objective stands in the answer by its name, in the order of `id2label`.
#[test]
fn the_server_answers_every_objective() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("objectives");
    with_tokenizer(&golden("heads/objectives"), &folder);
    let folder = folder.to_str().unwrap();
    let start = |weights: &str| {
        Server::start(&["--model", folder, "--set", &format!("objectives.weights={weights}")])
    };
    let server = start("[1.0, 0.5, -2.0]");
    let inputs =
        json!([{"text": "The answer is 12."}, {}, {"prompt": "Is it late?", "response": "Yes."}]);
    let answer = server.post("/reward", &json!({"inputs": inputs}));
    let places =
        ["helpfulness", "correctness", "brevity"].map(|name| answer.text.find(name).unwrap());
    assert!(places.is_sorted(), "{}", answer.text);
    let answer = answer.ok();
    for index in [0, 2] {
        let objectives = &answer["items"][index]["objectives"];
        let value = |name: &str| f64::from(float(&objectives[name]));
        assert_eq!(objectives.as_object().unwrap().len(), 3);
        let sum = value("helpfulness") + 0.5 * value("correctness") - 2.0 * value("brevity");
        assert_eq!(float(&answer["rewards"][index]), sum as f32);
    }
    assert!(answer["items"][1].get("objectives").is_none());
    let info = server.read("/info");
    assert_eq!(
        info["objectives"],
        json!([
            {"name": "helpfulness", "weight": 1.0},
            {"name": "correctness", "weight": 0.5},
            {"name": "brevity", "weight": -2.0}
        ])
    );
    // Other weights, other rewards: and another name for them.
    assert_ne!(start("[1.0, 0.5, 2.0]").read("/info")["weights"], info["weights"]);

    // A reward beyond all floats is that text's own error.
    let texts = ["é", "word", "The answer is 12.", "xyz", "7", "no", "why not?", "!!"];
    let texts = texts.map(|text| json!({ "text": text }));
    let sums: Vec<f64> = start("[1.0, 1.0, 1.0]").score(&texts)["rewards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sum| sum.as_f64().unwrap())
        .collect();
    let large = format!("{:.1}", 3e38);
    let answer = start(&format!("[{large}, {large}, {large}]")).score(&texts);
    let mut failed = 0;
    for (index, sum) in sums.into_iter().enumerate() {
        let is_finite = ((sum * f64::from(3e38f32)) as f32).is_finite();
        assert_eq!(answer["rewards"][index].is_number(), is_finite, "{sum}");
        if !is_finite {
            assert_eq!(answer["items"][index]["error"]["code"], "non_finite_reward");
            failed += 1;
        }
    }
    assert!((1..8).contains(&failed), "{failed} of 8");

    let mut command = program();
    command.args(["--port", "0", "--model", folder]).stderr(Stdio::piped());
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for part in ["objectives.weights", "0 helpfulness, 1 correctness, 2 brevity"] {
        assert!(errors.contains(part), "no {part:?} in {errors}");
    }
}
