//! Hidden states from mistral.rs: `encoder = "mistralrs"`.

use std::process::Stdio;

use crate::support::server::program;

/// What the server says to these flags, where it does not start.
fn refused(flags: &[&str]) -> String {
    let mut command = program();
    command.args(["--port", "0"]).args(flags).stderr(Stdio::piped());
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn settings_that_are_wrong_are_named() {
    let error = refused(&["--encoder", "llama.cpp"]);
    assert!(error.contains("encoder") && error.contains("mistralrs"), "{error}");
    let error = refused(&["--encoder", "mistralrs", "--set", "mistralrs.sequences=0"]);
    assert!(error.contains("mistralrs.sequences: must be at least 1"), "{error}");
}

#[cfg(not(feature = "mistralrs"))]
#[test]
fn a_program_without_the_feature_says_how_to_build_one_with_it() {
    let error = refused(&["--encoder", "mistralrs"]);
    assert!(error.contains("encoder: ") && error.contains("--features mistralrs"), "{error}");
}

#[cfg(feature = "mistralrs")]
mod with_mistralrs {
    use std::fs;
    use std::path::{Path, PathBuf};

    use inform::checkpoint::{
        CONFIG_FILE, CheckpointFiles, DecodeKind, HeadConfig, MemoryTensors, ModelConfig,
        WeightType, write_checkpoint,
    };
    use inform::config::ServerConfig;
    use inform::model::{Score, initialise_decoder, initialise_head};
    use inform::model_loader::ServedModel;
    use inform::placement::Devices;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::support::golden::{bits, golden, with_tokenizer};
    use crate::support::server::Server;

    /// Of one token each, of the same length, and of others; some begin alike.
    fn ragged() -> Vec<Vec<u32>> {
        let mut texts: Vec<Vec<u32>> = vec![vec![5], vec![63], vec![5]];
        texts.extend((1..40).map(|n| (0..n % 9 + 1).map(|i| (n * i * 7 + 3) % 64).collect()));
        texts.push((0..60).map(|i| i * i % 64).collect());
        texts.push((0..60).map(|i| if i < 40 { i * i % 64 } else { i }).collect());
        texts
    }

    fn scores(model: &Path, flags: &[(&str, &str)], texts: &[Vec<u32>]) -> (Vec<Score>, Devices) {
        let named = [("model", model.to_str().unwrap())];
        let flags: Vec<(String, String)> = named
            .iter()
            .chain(flags)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let config = ServerConfig::read(None, &flags).unwrap();
        let served = ServedModel::open(&config).unwrap();
        let devices = Devices::load(&config, &served).unwrap();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        (devices.scorers[0].score(&texts).unwrap(), devices)
    }

    fn difference(found: &[Score], expected: &[Score]) -> f32 {
        let values = |scores: &[Score]| scores.iter().flat_map(Score::values).collect::<Vec<_>>();
        let (found, expected) = (values(found), values(expected));
        assert_eq!(found.len(), expected.len());
        found.iter().zip(&expected).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
    }

    /// A Qwen3 with random weights, wide enough to be quantised, and an InfoRM head.
    fn wide(folder: &Path) {
        let text = fs::read(golden("families/qwen3").join(CONFIG_FILE)).unwrap();
        let mut keys: Map<String, Value> = serde_json::from_slice(&text).unwrap();
        for (key, value) in [("vocab_size", 280), ("hidden_size", 64), ("intermediate_size", 96)] {
            keys.insert(key.to_owned(), json!(value));
        }
        keys.insert("head_dim".to_owned(), json!(32));
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(CONFIG_FILE), serde_json::to_vec(&keys).unwrap()).unwrap();
        let decoder = ModelConfig::read(folder).unwrap().decoder;
        let head = HeadConfig::inform(8, DecodeKind::Linear);
        let mut tensors = MemoryTensors::default();
        initialise_decoder(&mut tensors, &decoder, 3);
        initialise_head(&mut tensors, &head, decoder.hidden_size, 3);
        for layer in 0..decoder.num_hidden_layers {
            for (name, first) in [("q_norm", 0.5), ("k_norm", 1.5)] {
                let scale = (0..32).map(|i| first + i as f32 / 32.0).collect();
                tensors.insert(
                    &format!("model.layers.{layer}.self_attn.{name}.weight"),
                    &[32],
                    scale,
                );
            }
        }
        let files = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
            .map(|name| (name.to_owned(), fs::read(golden("tiny/linear").join(name)).unwrap()));
        let config = ModelConfig { decoder, head, reward_scale: None };
        let contents = CheckpointFiles {
            config: &config,
            other_keys: keys,
            tensors: &tensors,
            weight_type: WeightType::F32,
            files: files.to_vec(),
        };
        write_checkpoint(folder, &contents, |_| anyhow::Ok((None, Vec::new()))).unwrap();
    }

    fn qwen3(folder: &Path) -> PathBuf {
        with_tokenizer(&golden("families/qwen3"), &folder.join("qwen3"));
        folder.join("qwen3")
    }

    const MISTRALRS: (&str, &str) = ("encoder", "mistralrs");

    #[test]
    fn rewards_are_those_of_this_programs_own_encoder() {
        let scratch = tempfile::tempdir().unwrap();
        let texts = ragged();
        wide(&scratch.path().join("wide"));
        for model in [qwen3(scratch.path()), scratch.path().join("wide")] {
            let (expected, _) = scores(&model, &[("dtype", "f32")], &texts);
            let spread = expected.iter().map(|score| score.reward).fold(0.0, f32::max)
                - expected.iter().map(|score| score.reward).fold(0.0, f32::min);
            for sequences in ["1", "8"] {
                let flags = [MISTRALRS, ("mistralrs.sequences", sequences)];
                let (found, devices) = scores(&model, &flags, &texts);
                let worst = difference(&found, &expected);
                println!("{}: within {worst:.1e}, rewards span {spread:.3}", model.display());
                assert!(worst < 1e-5 && spread > 1e-2, "{worst}, {spread}");
                assert!(
                    devices.name.starts_with("mistral.rs 0.8.1 (cpu, f32)"),
                    "{}",
                    devices.name
                );
            }
        }
    }

    #[test]
    fn a_reward_depends_on_its_text_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let model = qwen3(scratch.path());
        let texts = ragged();
        let (together, devices) = scores(&model, &[MISTRALRS], &texts);
        for (text, expected) in texts.iter().zip(&together) {
            let alone = devices.scorers[0].score(&[text]).unwrap();
            assert_eq!(bits(&alone[0]), bits(expected));
        }
    }

    #[test]
    fn weights_are_quantised_where_that_is_asked_for() {
        let scratch = tempfile::tempdir().unwrap();
        let model = scratch.path().join("wide");
        wide(&model);
        let texts = ragged();
        let (expected, _) = scores(&model, &[("dtype", "f32")], &texts);
        let flags = [MISTRALRS, ("mistralrs.quantise", "q8_0")];
        let (found, devices) = scores(&model, &flags, &texts);
        let worst = difference(&found, &expected);
        println!("q8_0: within {worst:.1e}");
        assert!(worst > 1e-5 && worst < 0.1, "{worst}");
        let encoder = devices.encoder.unwrap();
        assert_eq!(encoder.quantise.as_deref(), Some("q8_0"));
        assert!(devices.name.contains("q8_0"), "{}", devices.name);
    }

    #[test]
    fn the_server_says_what_computes() {
        let scratch = tempfile::tempdir().unwrap();
        let model = scratch.path().join("wide");
        wide(&model);
        let server = Server::start(&["--model", model.to_str().unwrap(), "--encoder", "mistralrs"]);
        let own = Server::start(&["--model", model.to_str().unwrap()]);
        let info = server.read("/info");
        assert_eq!(
            info["encoder"],
            json!({
                "engine": "mistral.rs", "version": "0.8.1", "quantise": null, "sequences": 1,
                "shares_prefixes": false
            })
        );
        assert_eq!(own.read("/info")["encoder"], Value::Null);
        let body = json!({"inputs": [
            {"prompt": "Why?", "response": "Because."}, {"prompt": "Why?", "response": "No."},
            {"input_ids": [1]}
        ]});
        let rewards = |server: &Server| -> Vec<f64> {
            let answer = server.reward(&body);
            answer["rewards"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect()
        };
        for (found, expected) in rewards(&server).into_iter().zip(rewards(&own)) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn what_mistralrs_does_not_compute_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let model = qwen3(scratch.path());
        let model = model.to_str().unwrap();
        let error = refused(&["--encoder", "mistralrs"]);
        assert!(
            error.contains("encoder: ") && error.contains("Qwen3 alone, and this is Llama"),
            "{error}"
        );
        for (flags, expected) in [
            (["--dtype", "bf16"], "dtype: mistral.rs multiplies no bf16 on a CPU"),
            (["--device", "cuda"], "device: this build's mistral.rs knows no GPU"),
            (["--set", "mistralrs.quantise=q99"], "mistralrs.quantise: "),
        ] {
            let all = [&["--model", model, "--encoder", "mistralrs"], &flags[..]].concat();
            let error = refused(&all);
            assert!(error.contains(expected), "{error}");
        }
        let members = format!("ensemble.members=[{model:?}]");
        let error = refused(&["--model", model, "--encoder", "mistralrs", "--set", &members]);
        assert!(error.contains("encoder: an ensemble"), "{error}");
        let config = Path::new(model).join(CONFIG_FILE);
        let text = fs::read_to_string(&config).unwrap();
        let changed = text.replace("\"attention_bias\": false", "\"attention_bias\": true");
        assert_ne!(text, changed);
        fs::write(&config, changed).unwrap();
        let error = refused(&["--model", model, "--encoder", "mistralrs"]);
        assert!(error.contains("bias"), "{error}");
    }
}
