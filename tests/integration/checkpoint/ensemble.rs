//! Ensembles against PyTorch and NumPy (`tests/golden/ensemble.py`), and served beside their members served alone.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::golden::{Golden, golden, relative_error, with_tokenizer};
use crate::support::server::{PATIENCE, Server, bits, float, floats, program};
use inform::checkpoint::{BASELINE_FILE, Baseline, Checkpoint};
use inform::config::EnsembleConfig;
use inform::config::ServerConfig;
use inform::model::{Aggregate, Aggregation, Member, Parts, Score, Scorer, standard_normal};
use inform::model_loader::ServedModel;
use inform::ops::cpu::{CpuOps, Precision};
use inform::train::init_head;
use serde_json::{Value, json};
use tempfile::TempDir;

const MEMBERS: [&str; 3] = ["first", "second", "third"];

/// The members as whole folders: those of the golden values have no tokenizer.
struct Members(TempDir);

impl Members {
    fn new() -> Self {
        let members = Self(tempfile::tempdir().unwrap());
        for name in MEMBERS {
            with_tokenizer(&golden("ensemble").join(name), &members.path(name));
        }
        members
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, members: &[&str], aggregate: Aggregate, lambda: f64) -> ServerConfig {
        ServerConfig {
            model: self.path(members[0]),
            ensemble: EnsembleConfig {
                members: members[1..].iter().map(|name| self.path(name)).collect(),
                aggregate,
                lambda,
            },
            ..ServerConfig::default()
        }
    }

    fn load(&self, members: &[&str], aggregate: Aggregate, lambda: f64) -> Box<dyn Scorer> {
        let served = ServedModel::open(&self.config(members, aggregate, lambda)).unwrap();
        served.load(CpuOps::new(2, Precision::F32).unwrap()).unwrap()
    }

    /// Flags of a server of these members.
    fn flags(&self, members: &[&str], more: &[&str]) -> Vec<String> {
        let text = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let others: Vec<String> = members[1..].iter().map(|name| text(name)).collect();
        let mut flags = vec!["--model".to_owned(), text(members[0])];
        if !others.is_empty() {
            flags.extend(["--set".to_owned(), format!("ensemble.members={}", json!(others))]);
        }
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        flags
    }

    fn serve(&self, members: &[&str], more: &[&str]) -> Server {
        let flags = self.flags(members, more);
        Server::start(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Changes a JSON file of a member.
    fn edit(&self, name: &str, file: &str, change: impl FnOnce(&mut Value)) {
        let file = self.path(name).join(file);
        let mut keys = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut keys);
        fs::write(&file, keys.to_string()).unwrap();
    }
}

fn of_members(score: &Score) -> Vec<f32> {
    let Parts::Members(members) = &score.parts else { panic!("{score:?}") };
    members.iter().map(|member| member.reward).collect()
}

#[test]
fn aggregates_are_numpys_of_pytorchs_rewards() {
    let members = Members::new();
    let expected = Golden::read("ensemble/ensemble.safetensors");
    let sequences = expected.sequences();
    let texts: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let of_each = expected.f32("members");
    for (aggregate, lambda, name) in
        [(Aggregate::Mean, 0.5, "mean"), (Aggregate::Uwo, 0.5, "uwo"), (Aggregate::Wco, 0.5, "wco")]
    {
        let scores = members.load(&MEMBERS, aggregate, lambda).score(&texts).unwrap();
        for (index, of_member) in of_each.chunks(texts.len()).enumerate() {
            let found: Vec<f32> = scores.iter().map(|score| of_members(score)[index]).collect();
            let error = relative_error(&found, of_member);
            assert!(error < 1e-5, "member {index}: {error:e}");
        }
        let rewards: Vec<f32> = scores.iter().map(|score| score.reward).collect();
        let aggregated: Vec<f32> =
            expected.f64(name).into_iter().map(|value| value as f32).collect();
        let error = relative_error(&rewards, &aggregated);
        assert!(error < 1e-5, "{name}: {error:e}");
        println!("{name}: relative error {error:.1e}");
    }
}

/// The order of members, and whether they share a backbone, changes no bit of what each gives.
#[test]
fn a_member_gives_what_it_gives_alone() {
    let members = Members::new();
    let sequences = Golden::read("ensemble/ensemble.safetensors").sequences();
    let texts: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let alone =
        MEMBERS.map(|name| members.load(&[name], Aggregate::Mean, 0.0).score(&texts).unwrap());
    let orders = [[0, 1, 2], [2, 1, 0], [1, 2, 0]];
    for order in orders {
        let names = order.map(|index| MEMBERS[index]);
        let scores = members.load(&names, Aggregate::Wco, 0.0).score(&texts).unwrap();
        for (text, score) in scores.iter().enumerate() {
            let Parts::Members(found) = &score.parts else { panic!("{score:?}") };
            for (found, index) in found.iter().zip(order) {
                assert_eq!(found.reward.to_bits(), alone[index][text].reward.to_bits());
                assert_eq!(found.latent, alone[index][text].latent);
            }
            assert_eq!(score.latent, alone[order[0]][text].latent);
            let least = order.map(|index| alone[index][text].reward).into_iter().reduce(f32::min);
            assert_eq!(Some(score.reward), least);
        }
    }
}

/// The first member draws as it does alone; the others draw on their own. Of a mean of equal and independent rewards the
/// variance is theirs over their number.
#[test]
fn the_spread_is_that_of_the_aggregate_over_draws_of_every_latent() {
    let members = Members::new();
    let text: &[u32] = &[5, 6, 7, 8];
    let draws = 20_000;
    let spread = |names: &[&str], aggregate| {
        let model = members.load(names, aggregate, 0.0);
        let score = model.score(&[text]).unwrap().remove(0);
        model.reward_spread(&score, draws).unwrap().map(f64::from)
    };
    let [first, second] = ["first", "second"].map(|name| spread(&[name], Aggregate::Mean).unwrap());
    assert_eq!(spread(&["third"], Aggregate::Mean), None);
    let near = |found: Option<f64>, expected: f64| {
        let found = found.unwrap();
        assert!((found - expected).abs() < 0.02 * expected, "{found} against {expected}");
    };
    near(spread(&["first", "first"], Aggregate::Mean), first / 2f64.sqrt());
    near(spread(&["first", "second"], Aggregate::Mean), first.hypot(second) / 2.0);
    // A standard head has nothing to draw.
    near(spread(&["first", "third"], Aggregate::Mean), first / 2.0);
    // Of the least of two the closed form (Clark 1961): equal means and deviations, uncorrelated.
    near(
        spread(&["first", "first"], Aggregate::Wco),
        first * (1.0 - 1.0 / std::f64::consts::PI).sqrt(),
    );
}

#[test]
fn what_is_not_a_number_is_never_passed_over() {
    for aggregate in [Aggregate::Mean, Aggregate::Uwo, Aggregate::Wco] {
        let aggregation = Aggregation { aggregate, lambda: 0.5 };
        for rewards in [[f64::NAN, 1.0, -1.0], [1.0, f64::NAN, -1.0], [1.0, -1.0, f64::NAN]] {
            assert!(aggregation.reward(&rewards).is_nan(), "{aggregate:?} of {rewards:?}");
        }
    }
    // Nor in a member's draws.
    let members = Members::new();
    let model = members.load(&["first", "second"], Aggregate::Wco, 0.0);
    for place in 0..2 {
        let mut score = model.score(&[&[5, 6, 7]]).unwrap().remove(0);
        assert!(model.reward_spread(&score, 10).unwrap().unwrap().is_finite());
        let Parts::Members(parts) = &mut score.parts else { panic!("{score:?}") };
        parts[place].latent.as_mut().unwrap().sigma.fill(f32::NAN);
        assert!(model.reward_spread(&score, 10).unwrap().unwrap().is_nan(), "member {place}");
    }
}

/// What a score holds besides its first member's latent is counted: the members, and their latents.
#[test]
fn the_cache_counts_what_an_ensembles_scores_hold() {
    let members = Members::new();
    let [alone, ensemble] = [&["first"][..], &MEMBERS].map(|names| {
        let server = members.serve(names, &[]);
        let texts = ["Is it late?", "The answer is 12."].map(|text| json!({"text": text}));
        server.reward(&json!({"inputs": texts, "samples": 4}));
        // The cache is tidied after the answers.
        let value = |name: &str| server.metric(name)[0].1;
        let started = Instant::now();
        while value("inform_cache_entries") < 4.0 && started.elapsed() < PATIENCE {
            sleep(Duration::from_millis(20));
        }
        (value("inform_cache_entries"), value("inform_cache_bytes"))
    });
    assert_eq!((alone.0, ensemble.0), (4.0, 4.0));
    let latents = ["first", "second"].map(|name| {
        let head = Checkpoint::open(&members.path(name)).unwrap().config.head;
        2 * size_of::<f32>() * head.latent_dim().unwrap()
    });
    let more = MEMBERS.len() * size_of::<Member>() + latents.iter().sum::<usize>();
    assert_eq!(ensemble.1 - alone.1, 4.0 * more as f64);
}

#[test]
fn the_hash_is_over_members_their_order_and_the_rule() {
    let members = Members::new();
    let open = |names: &[&str], aggregate, lambda| {
        ServedModel::open(&members.config(names, aggregate, lambda)).unwrap().weights
    };
    let one = open(&["first", "second"], Aggregate::Mean, 0.1);
    let hashes = [
        one.clone(),
        open(&["second", "first"], Aggregate::Mean, 0.1),
        open(&["first", "third"], Aggregate::Mean, 0.1),
        open(&["first", "second"], Aggregate::Wco, 0.1),
        open(&["first", "second"], Aggregate::Uwo, 0.1),
        open(&["first", "second"], Aggregate::Uwo, 0.2),
        open(&["first"], Aggregate::Mean, 0.1),
    ];
    for (index, hash) in hashes.iter().enumerate() {
        assert!(hash.starts_with("sha256:") && hash.len() == 71);
        assert!(!hashes[..index].contains(hash), "{index}");
    }
    assert_eq!(open(&["first", "second"], Aggregate::Mean, 0.7), one);
}

#[test]
fn members_that_do_not_go_together_are_refused() {
    let refused = |change: &dyn Fn(&Members), parts: &[&str]| {
        let members = Members::new();
        change(&members);
        let config = members.config(&MEMBERS, Aggregate::Mean, 0.0);
        let error = format!("{:#}", ServedModel::open(&config).err().unwrap());
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error:?}");
        }
    };
    let template = |members: &Members| {
        fs::write(members.path("second").join("chat_template.jinja"), "{{ eos_token }}").unwrap();
    };
    refused(&template, &["ensemble.members", "second", "chat template"]);
    let tokenizer = |members: &Members| {
        let file = members.path("third").join("tokenizer.json");
        fs::copy(golden("tiny/gated/tokenizer.json"), file).unwrap();
    };
    refused(&tokenizer, &["ensemble.members", "third", "tokenizer"]);
    let shorter = |members: &Members| {
        members.edit("second", "config.json", |keys| keys["max_position_embeddings"] = json!(100));
    };
    refused(&shorter, &["second", "max_position_embeddings", "100", "512"]);
    let gone = |members: &Members| fs::remove_dir_all(members.path("third")).unwrap();
    refused(&gone, &["ensemble.members", "third"]);
}

/// The weights are by label, so labels must be in one order.
#[test]
fn objectives_of_members_are_the_same() {
    let members = Members::new();
    for name in ["weighted", "alike"] {
        with_tokenizer(&golden("heads/objectives"), &members.path(name));
    }
    let mut config = members.config(&["weighted", "alike"], Aggregate::Mean, 0.0);
    config.objectives.weights = vec![1.0, 0.5, -2.0];
    ServedModel::open(&config).unwrap();
    members.edit("alike", "config.json", |keys| {
        let first = keys["id2label"]["0"].clone();
        keys["id2label"]["0"] = std::mem::replace(&mut keys["id2label"]["1"], first);
    });
    let error = format!("{:#}", ServedModel::open(&config).err().unwrap());
    assert!(error.contains("alike") && error.contains("labels"), "{error}");
}

/// The shipped file, with members for those that it names.
#[test]
fn the_shipped_configuration_serves_what_its_members_served_alone_make() {
    let members = Members::new();
    let names = ["first", "second", "fourth"];
    let head = Checkpoint::open(&members.path("first")).unwrap().config.head;
    init_head(&members.path("first"), &members.path("fourth"), &head, 4).unwrap();

    let mut command = program();
    command.args(["--config", "configs/ensemble.toml", "--port", "0"]);
    command.args(members.flags(&names, &["--set", "ensemble.lambda=0.5"]));
    let server = Server::spawn(command);
    let alone = names.map(|name| members.serve(&[name], &[]));

    let inputs = [
        json!({"prompt": "Is it late?", "response": "Yes."}),
        json!({"text": "The answer is 12."}),
        json!({"prompt": "Is it late?", "response": "No, it is not."}),
        json!({"input_ids": []}),
    ];
    let body = json!({"inputs": inputs, "samples": 50, "run": "r"});
    let found = server.reward(&body);
    let of_each = alone.each_ref().map(|server| server.reward(&body));
    for index in 0..3 {
        let item = &found["items"][index];
        let rewards: Vec<f32> =
            of_each.iter().map(|answer| float(&answer["rewards"][index])).collect();
        assert_eq!(floats(&item["members"]), rewards);
        let count = rewards.len() as f64;
        let mean = rewards.iter().copied().map(f64::from).sum::<f64>() / count;
        let variance =
            rewards.iter().map(|&reward| (f64::from(reward) - mean).powi(2)).sum::<f64>() / count;
        assert!((item["variance"].as_f64().unwrap() - variance).abs() <= 1e-12 * variance);
        assert_eq!(float(&found["rewards"][index]), (mean - 0.5 * variance) as f32);
        assert_eq!(bits(&found, index).1, bits(&of_each[0], index).1, "the first member's latents");
        assert!(item["reward_std"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(found["rewards"][3], Value::Null);
    assert_eq!(found["items"][3]["error"]["code"], "empty_input");
    assert!(found["items"][3].get("members").is_none());
    let again = server.reward(&body);
    assert!((0..3).all(|index| again["items"][index]["cached"] == true));
    for index in 0..3 {
        assert_eq!(again["items"][index]["members"], found["items"][index]["members"]);
    }

    // Other protocols give the aggregated reward.
    let rewards = server.reward(&body)["rewards"].clone();
    let openrlhf = server.post("/get_reward", &json!({"query": ["The answer is 12."]})).ok();
    assert_eq!(openrlhf["rewards"][0], rewards[1]);
    let vllm = server.post("/score", &json!({"text_1": "Is it late?", "text_2": "Yes."})).ok();
    assert_eq!(vllm["data"][0]["score"], rewards[0]);

    let info = server.read("/info");
    let ensemble = &info["ensemble"];
    assert_eq!((&ensemble["aggregate"], &ensemble["lambda"]), (&json!("uwo"), &json!(0.5)));
    for (index, (name, server)) in names.iter().zip(&alone).enumerate() {
        let (member, own) = (&ensemble["members"][index], server.read("/info"));
        assert_eq!(member["model"], *name);
        assert_eq!(member["weights"], own["weights"]);
        assert_eq!(member["head"], own["head"]);
        assert_eq!(member["backbone"], 0, "all three have the first one's backbone");
        assert!(own.get("ensemble").is_none());
    }
    assert_eq!(info["weights"], found["weights"]);
    assert_ne!(info["weights"], ensemble["members"][0]["weights"]);
}

#[test]
fn the_monitor_watches_the_first_members_latents() {
    let members = Members::new();
    let checkpoint = Checkpoint::open(&members.path("first")).unwrap();
    let latents = standard_normal(3, 0, 64 * 4);
    let baseline = Baseline {
        latents: latents.clone(),
        dimension: 4,
        rewards: None,
        prompts: None,
        weights: checkpoint.weights.clone(),
        source: "test".to_owned(),
    };
    fs::write(members.path("first").join(BASELINE_FILE), baseline.to_bytes().unwrap()).unwrap();
    let server = members.serve(&MEMBERS, &["--set", "monitor.min_window=4"]);
    assert_eq!(server.read("/info")["baseline_samples"], 64);
    let texts: Vec<Value> = (0..8).map(|i| json!({"text": "word ".repeat(i + 1)})).collect();
    let answer = server.reward(&json!({"inputs": texts, "run": "r"}));
    assert!(answer["items"][0]["mahalanobis"].as_f64().unwrap() > 0.0);
    let evaluation = server.post("/runs/r/evaluate", &json!({})).ok();
    assert!(evaluation["energy"].as_f64().unwrap() > 0.0);
    let mean = floats(&answer["rewards"]).iter().sum::<f32>() / 8.0;
    assert!((float(&evaluation["reward_mean"]) - mean).abs() < 1e-5, "the aggregated rewards");

    // Latents that the trainer made of the first member belong to it, whatever the ensemble is called.
    let rows: Vec<&[f32]> = latents.chunks(4).collect();
    let own = server.read("/info")["weights"].as_str().unwrap().to_owned();
    for (hash, status) in [(&checkpoint.weights, 200), (&own, 200), (&"sha256:0".to_owned(), 409)] {
        let body = json!({"latents": rows, "weights": hash});
        assert_eq!(server.put("/runs/r/baseline", &body).status, status, "{hash}");
    }
}

#[test]
fn verify_compares_the_ensembles_rewards() {
    let members = Members::new();
    let file = members.path("rewards.jsonl");
    let server = members.serve(&MEMBERS, &["--set", "ensemble.aggregate=wco"]);
    let reward = &server.score(&[json!({"text": "The answer is 12."})])["rewards"][0];
    fs::write(
        &file,
        json!({"text": "The answer is 12.", "reward": reward, "tolerance": 0}).to_string(),
    )
    .unwrap();
    let verify = |aggregate: &str| {
        let mut command = program();
        command.args(members.flags(&MEMBERS, &["--set", aggregate])).args(["verify", "--against"]);
        command.arg(&file).stderr(Stdio::null()).status().unwrap().code()
    };
    assert_eq!(verify("ensemble.aggregate=wco"), Some(0));
    assert_eq!(verify("ensemble.aggregate=mean"), Some(1));
}
