//! Averages of checkpoints, what they refuse, and a server on one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::folders::{Scratch, config, set_config, stored};
use crate::support::golden::golden;
use crate::support::server::{Server, UNCACHED, floats, pair, program};
use half::{bf16, f16};
use inform::checkpoint::{
    BASELINE_FILE, Baseline, Checkpoint, CheckpointError, CheckpointFiles, DecodeKind, HeadConfig,
    MemoryTensors, TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WeightType,
    write_checkpoint,
};
use inform::ops::standard_normal;
use inform::train::{MERGE_FILE, MergeRecord, MergeSettings, init_head, merge};
use safetensors::SafeTensors;
use serde_json::json;

/// What is merged, and what becomes of it.
struct Workshop(Scratch);

impl std::ops::Deref for Workshop {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        &self.0
    }
}

impl Workshop {
    fn new() -> Self {
        Self(Scratch::new())
    }

    /// A checkpoint of the same form, as a training from there would leave it: every weight moved a little.
    fn trained(&self, of: &Path, name: &str, seed: u64, weight_type: WeightType) -> PathBuf {
        self.changed(of, name, weight_type, |tensors| {
            let source = tensors.clone();
            for (stream, (name, shape, values)) in source.iter().enumerate() {
                let noise = standard_normal(seed, stream as u64, values.len());
                let moved = values.iter().zip(noise).map(|(value, noise)| value + 0.01 * noise);
                tensors.insert(name, shape, moved.collect());
            }
        })
    }

    /// A checkpoint with its tensors as `change` leaves them.
    fn changed(
        &self,
        of: &Path,
        name: &str,
        weight_type: WeightType,
        change: impl FnOnce(&mut MemoryTensors),
    ) -> PathBuf {
        let checkpoint = Checkpoint::open(of).unwrap();
        let mut tensors = checkpoint.tensors.to_memory().unwrap();
        change(&mut tensors);
        let files = [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE]
            .into_iter()
            .filter_map(|file| Some((file.to_owned(), fs::read(of.join(file)).ok()?)));
        let contents = CheckpointFiles {
            config: &checkpoint.config,
            other_keys: config(of),
            tensors: &tensors,
            weight_type,
            files: files.collect(),
        };
        let folder = self.path(name);
        write_checkpoint::<CheckpointError>(&folder, &contents, |_| Ok((None, Vec::new())))
            .unwrap();
        folder
    }

    fn merge(&self, models: &[PathBuf], weights: &[f64]) -> anyhow::Result<MergeRecord> {
        merge(&MergeSettings { models, weights, output: &self.path("merged"), weight_type: None })
    }
}

/// What the merged checkpoint must hold: weighted means in f64, rounded once by `round`.
fn assert_is_mean(
    merged: &Path,
    models: &[PathBuf],
    weights: &[f64],
    dtype: safetensors::Dtype,
    round: impl Fn(f64) -> Vec<u8>,
) {
    let inputs: Vec<Checkpoint> = models.iter().map(|m| Checkpoint::open(m).unwrap()).collect();
    let inputs: Vec<MemoryTensors> =
        inputs.iter().map(|input| input.tensors.to_memory().unwrap()).collect();
    let found = stored(merged);
    assert_eq!(found.len(), inputs[0].iter().count());
    let mut tensors: Vec<_> = inputs.iter().map(MemoryTensors::iter).collect();
    for (name, found_dtype, bytes) in found {
        let values: Vec<&[f32]> = tensors
            .iter_mut()
            .map(|tensors| {
                let (found, _, values) = tensors.next().unwrap();
                assert_eq!(found, name);
                values
            })
            .collect();
        let expected: Vec<u8> = (0..values[0].len())
            .flat_map(|at| {
                let products = values.iter().zip(weights).map(|(v, w)| w * f64::from(v[at]));
                round(products.sum::<f64>() / weights.iter().sum::<f64>())
            })
            .collect();
        assert_eq!(found_dtype, dtype, "{name}");
        assert!(bytes == expected, "{name}");
    }
}

#[test]
fn an_average_is_the_mean_to_the_bit() {
    let workshop = Workshop::new();
    let start = golden("tiny/linear");
    let models =
        [1, 2, 3].map(|seed| workshop.trained(&start, &format!("m{seed}"), seed, WeightType::F32));
    let f32_bytes = |value: f64| (value as f32).to_le_bytes().to_vec();

    let record = workshop.merge(&models, &[]).unwrap();
    let merged = workshop.path("merged");
    assert_is_mean(&merged, &models, &[1.0; 3], safetensors::Dtype::F32, f32_bytes);
    assert!(record.inputs.iter().all(|input| (input.share - 1.0 / 3.0).abs() < 1e-15));

    // The first average is replaced.
    let record = workshop.merge(&models[..2], &[3.0, 1.0]).unwrap();
    assert_is_mean(&merged, &models[..2], &[3.0, 1.0], safetensors::Dtype::F32, f32_bytes);
    assert_eq!(record.inputs.iter().map(|input| input.share).collect::<Vec<_>>(), [0.75, 0.25]);
}

#[test]
fn an_average_has_its_inputs_type_or_the_one_that_is_asked_for() {
    let workshop = Workshop::new();
    let start = golden("tiny/linear");
    type Round = fn(f64) -> Vec<u8>;
    let cases: [(WeightType, safetensors::Dtype, &str, Round); 2] = [
        (WeightType::Bf16, safetensors::Dtype::BF16, "bfloat16", |value| {
            bf16::from_f64(value).to_le_bytes().to_vec()
        }),
        (WeightType::F16, safetensors::Dtype::F16, "float16", |value| {
            f16::from_f64(value).to_le_bytes().to_vec()
        }),
    ];
    let merged = workshop.path("merged");
    for (weight_type, dtype, name, round) in cases {
        let models = [1, 2].map(|seed| {
            let folder = workshop.trained(&start, &format!("{name}{seed}"), seed, weight_type);
            set_config(&folder, |keys| drop(keys.insert("dtype".to_owned(), json!(name))));
            folder
        });
        workshop.merge(&models, &[]).unwrap();
        assert_is_mean(&merged, &models, &[1.0; 2], dtype, round);
        assert_eq!(config(&merged)["dtype"], name);
    }

    let mixed = [workshop.path("bfloat161"), workshop.path("float162")];
    workshop.merge(&mixed, &[]).unwrap();
    let f32_bytes = |value: f64| (value as f32).to_le_bytes().to_vec();
    assert_is_mean(&merged, &mixed, &[1.0; 2], safetensors::Dtype::F32, f32_bytes);
    assert_eq!(config(&merged)["dtype"], "float32");

    let settings = MergeSettings {
        models: &mixed,
        weights: &[],
        output: &merged,
        weight_type: Some(WeightType::Bf16),
    };
    merge(&settings).unwrap();
    let bf16_bytes = |value: f64| bf16::from_f64(value).to_le_bytes().to_vec();
    assert_is_mean(&merged, &mixed, &[1.0; 2], safetensors::Dtype::BF16, bf16_bytes);
}

/// Shards, and a reward normalisation.
#[test]
fn shards_are_read_and_a_normalisation_is_not_carried_over() {
    let workshop = Workshop::new();
    for of in ["tiny/gated", "tiny/standard"] {
        let first = golden(of);
        let second = workshop.trained(&first, of.rsplit_once('/').unwrap().1, 5, WeightType::F32);
        let record = workshop.merge(&[first.clone(), second.clone()], &[]).unwrap();
        let merged = Checkpoint::open(&workshop.path("merged")).unwrap();
        let [first, second] = [first, second].map(|folder| Checkpoint::open(&folder).unwrap());
        assert_eq!(merged.config.head, first.config.head);
        assert_eq!(merged.config.reward_scale, None);
        let has_scale = first.config.reward_scale.is_some();
        let is_said = record.not_carried_over.iter().any(|note| note.contains("normalisation"));
        assert_eq!(is_said, has_scale, "{of}");
        let keys = config(&merged.folder);
        assert!(!keys.contains_key("mean") && !keys.contains_key("std"), "{keys:?}");
        assert_eq!(merged.encoder.policy(), first.encoder.policy());
        let hashes: Vec<&str> = record.inputs.iter().map(|input| input.weights.as_str()).collect();
        assert_eq!(hashes, [first.weights, second.weights]);
    }
}

#[test]
fn record_and_card_name_the_inputs_and_what_is_lost() {
    let workshop = Workshop::new();
    let start = golden("tiny/linear");
    let models =
        [1, 2].map(|seed| workshop.trained(&start, &format!("m{seed}"), seed, WeightType::F32));
    let input = Checkpoint::open(&models[1]).unwrap();
    let dimension = input.config.head.latent_dim().unwrap();
    let baseline = Baseline {
        latents: vec![0.0; dimension],
        dimension,
        rewards: None,
        prompts: None,
        weights: input.weights,
        source: "an answer".to_owned(),
    };
    fs::write(models[1].join(BASELINE_FILE), baseline.to_bytes().unwrap()).unwrap();

    let record = workshop.merge(&models, &[2.0, 6.0]).unwrap();
    let merged = workshop.path("merged");
    let checkpoint = Checkpoint::open(&merged).unwrap();
    assert_eq!(record.weights, checkpoint.weights);
    assert_eq!(checkpoint.baseline, None);
    let written: MergeRecord =
        serde_json::from_slice(&fs::read(merged.join(MERGE_FILE)).unwrap()).unwrap();
    assert_eq!(written, record);
    assert!(record.not_carried_over[0].contains("trainer baseline"), "{record:?}");
    let card = fs::read_to_string(merged.join("README.md")).unwrap();
    let hashes = record.inputs.iter().map(|input| &input.weights).chain([&record.weights]);
    for part in hashes.map(String::as_str).chain(["`m1`", "`m2`", "0.2500", "0.7500"]) {
        assert!(card.contains(part), "no {part} in {card}");
    }
    assert!(!card.contains("Warning"), "{card}");
}

/// Distances are those of the definition; heads of random weights of their own are as far from their mean as it is long.
#[test]
fn distances_tell_one_start_from_several() {
    let workshop = Workshop::new();
    let head = HeadConfig::inform(6, DecodeKind::Linear);
    let models = [1, 2].map(|seed| {
        let folder = workshop.path(&format!("head{seed}"));
        init_head(&golden("tiny/linear"), &folder, &head, seed).unwrap();
        folder
    });
    let record = workshop.merge(&models, &[]).unwrap();
    let checkpoints = models.map(|folder| Checkpoint::open(&folder).unwrap());
    let head = |checkpoint: &Checkpoint| -> Vec<f64> {
        let tensors = checkpoint.tensors.to_memory().unwrap();
        let head = tensors.iter().filter(|(name, ..)| !name.starts_with("model."));
        head.flat_map(|(_, _, values)| values.to_vec()).map(f64::from).collect()
    };
    let [a, b] = checkpoints.each_ref().map(head);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let between = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    let expected = between / norm(&mut a.iter().zip(&b).map(|(a, b)| a + b));
    for input in &record.inputs {
        let inform::train::Distance { backbone, head } = input.distance;
        assert!((head - expected).abs() < 1e-9, "{head} {expected}");
        assert!(backbone == 0.0, "{backbone}");
    }
    assert!((0.8..1.25).contains(&expected), "{expected}");
    let card = fs::read_to_string(workshop.path("merged").join("README.md")).unwrap();
    assert!(card.contains("Warning: the head of head1, head2 has little in common"), "{card}");
}

fn assert_refused(result: anyhow::Result<MergeRecord>, parts: &[&str]) {
    let error = format!("{:#}", result.expect_err(parts[0]));
    println!("{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn wrong_settings_are_refused() {
    let workshop = Workshop::new();
    let linear = golden("tiny/linear");
    let other = workshop.trained(&linear, "other", 1, WeightType::F32);
    let both = [linear.clone(), other.clone()];
    assert_refused(workshop.merge(&both[..1], &[]), &["--model", "at least two"]);
    assert_refused(workshop.merge(&both, &[1.0]), &["--weights", "1 numbers for 2"]);
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_refused(
            workshop.merge(&both, &[1.0, weight]),
            &["--weights", &weight.to_string(), "above 0"],
        );
    }
    assert_refused(workshop.merge(&both, &[1e308, 1e308]), &["--weights", "sum"]);
    let notes = workshop.path("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join("kept"), "").unwrap();
    let output = workshop.path("other/../other");
    let settings =
        MergeSettings { models: &both, weights: &[], output: &output, weight_type: None };
    assert_refused(merge(&settings), &["output", "other would be replaced"]);
    for (output, part) in [(workshop.root(), "other would be replaced"), (&notes, "no checkpoint")]
    {
        assert_refused(merge(&MergeSettings { output, ..settings.clone() }), &["output", part]);
    }
    assert!(notes.join("kept").exists());
    let twice = workshop.copy("tiny/linear", "twice");
    let models = [linear.clone(), other.clone(), twice];
    assert_refused(workshop.merge(&models, &[]), &["twice has the weights of", "tiny/linear"]);
    assert_refused(workshop.merge(&[linear, workshop.path("none")], &[]), &["none"]);
    assert!(!workshop.path("merged").exists());
}

/// Rows of one name would be averaged with those of another.
#[test]
fn heads_whose_labels_are_in_another_order_are_refused() {
    let workshop = Workshop::new();
    let first = workshop.with_tokenizer("heads/objectives", "first");
    let second = workshop.changed(&first, "second", WeightType::F32, |tensors| {
        let (shape, mut values) = {
            let (_, shape, values) =
                tensors.iter().find(|(name, ..)| *name == "score.weight").unwrap();
            (shape.to_vec(), values.to_vec())
        };
        values.reverse();
        tensors.insert("score.weight", &shape, values);
    });
    let labels = config(&first)["id2label"].clone();
    set_config(&second, |keys| {
        keys.insert("num_labels".to_owned(), json!(3));
        keys.insert("id2label".to_owned(), labels.clone());
    });
    let both = [first, second.clone()];
    workshop.merge(&both, &[]).unwrap();
    let reversed = json!({"0": labels["2"], "1": labels["1"], "2": labels["0"]});
    set_config(&second, |keys| drop(keys.insert("id2label".to_owned(), reversed)));
    assert_refused(workshop.merge(&both, &[]), &["second", "first", "labels"]);
}

/// Each a copy with one difference, and what is said of it.
#[test]
fn checkpoints_that_differ_are_refused_by_what_differs() {
    let workshop = Workshop::new();
    let linear = golden("tiny/linear");
    let tensors = |folder: &Path| Checkpoint::open(folder).unwrap().tensors.to_memory().unwrap();
    let vocabulary = Checkpoint::open(&linear).unwrap().config.decoder.vocab_size;

    let wide = workshop.copy("tiny/linear", "wide");
    set_config(&wide, |keys| drop(keys.insert("rms_norm_eps".to_owned(), json!(0.25))));
    let gated = workshop.path("gated");
    let head = |dimension, decode| HeadConfig::inform(dimension, decode);
    init_head(&linear, &gated, &head(8, DecodeKind::Gated), 0).unwrap();
    let [six, seven] = [6, 7].map(|dimension| {
        let folder = workshop.path(&format!("latent{dimension}"));
        init_head(&linear, &folder, &head(dimension, DecodeKind::Linear), 0).unwrap();
        folder
    });
    let family = workshop.family("qwen2");
    let extra = workshop.changed(&linear, "extra", WeightType::F32, |tensors| {
        tensors.insert("lm_head.weight", &[vocabulary, 2], vec![0.0; 2 * vocabulary]);
    });
    let other_shape = workshop.changed(&linear, "shape", WeightType::F32, |tensors| {
        tensors.insert("lm_head.weight", &[vocabulary, 3], vec![0.0; 3 * vocabulary]);
    });
    assert!(tensors(&extra).iter().any(|(name, ..)| name == "lm_head.weight"));
    let tokenizer = workshop.copy("tiny/linear", "tokenizer");
    let text = fs::read_to_string(tokenizer.join(TOKENIZER_FILE)).unwrap();
    fs::write(tokenizer.join(TOKENIZER_FILE), text + "\n").unwrap();
    let template = workshop.copy("tiny/linear", "template");
    fs::remove_file(template.join(TEMPLATE_FILE)).unwrap();
    let eos = workshop.copy("tiny/linear", "eos");
    let text = fs::read_to_string(eos.join(TOKENIZER_CONFIG_FILE)).unwrap();
    fs::write(eos.join(TOKENIZER_CONFIG_FILE), text.replace("<|end|>", "<|bos|>")).unwrap();

    let cases: [(&Path, &Path, &[&str]); 10] = [
        (&linear, &family, &["its family is Qwen2, not Llama"]),
        (&linear, &wide, &["`decoder.rms_norm_eps`", "0.25"]),
        (&linear, &gated, &["`head."]),
        (&six, &seven, &["`head.latent_dim` is 7, not 6"]),
        (&linear, &extra, &["tensor `lm_head.weight`", "which the other has not"]),
        (&extra, &linear, &["it has no tensor `lm_head.weight`"]),
        (&extra, &other_shape, &["`lm_head.weight` has shape [280, 3], not [280, 2]"]),
        (&linear, &tokenizer, &["other token ids", "`tokenizer`", "sha256:"]),
        (&linear, &template, &["other token ids", "`template` is null"]),
        (&linear, &eos, &["other token ids", "`eos."]),
    ];
    for (first, second, parts) in cases {
        let names = [first, second].map(|folder| folder.display().to_string());
        let parts = [parts, &names.each_ref().map(String::as_str)].concat();
        assert_refused(workshop.merge(&[first.to_owned(), second.to_owned()], &[]), &parts);
    }
    assert!(!workshop.path("merged").exists());
}

#[test]
fn weights_that_cannot_be_averaged_leave_the_output_alone() {
    let workshop = Workshop::new();
    let linear = golden("tiny/linear");
    let good = workshop.trained(&linear, "good", 1, WeightType::F32);
    workshop.merge(&[linear.clone(), good.clone()], &[]).unwrap();
    let before = stored(&workshop.path("merged"));

    let name = "model.norm.weight";
    let large = workshop.changed(&linear, "large", WeightType::F32, |tensors| {
        tensors.insert(name, &[64], vec![1e6; 64]);
    });
    let settings = MergeSettings {
        models: &[linear.clone(), large],
        weights: &[],
        output: &workshop.path("merged"),
        weight_type: Some(WeightType::F16),
    };
    assert_refused(merge(&settings), &["merged", name, "float16 cannot hold"]);
    // A training that was cut short by hand.
    let bad = workshop.copy("tiny/linear", "bad");
    let mut bytes = fs::read(bad.join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(bad.join("model.safetensors"), bytes).unwrap();
    assert_refused(workshop.merge(&[good.clone(), bad], &[]), &["bad", "not finite"]);
    // Language models without a reward head.
    let first = workshop.copy("tiny/standard", "first");
    let models = [workshop.trained(&first, "second", 2, WeightType::F32), first];
    for folder in &models {
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let headless = tensors.into_iter().filter(|(name, _)| name != "score.weight");
        fs::write(
            folder.join("model.safetensors"),
            safetensors::serialize(headless, None).unwrap(),
        )
        .unwrap();
    }
    assert_refused(workshop.merge(&models, &[]), &["score.weight", "trainer init-head"]);
    assert_eq!(stored(&workshop.path("merged")), before);
    let left: Vec<_> = fs::read_dir(workshop.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The configuration of InfoRM with WARM, where it looks for its checkpoint.
#[test]
fn the_bundled_configuration_serves_an_average() {
    let workshop = Workshop::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/warm.toml");
    let check = || {
        let mut command = program();
        command.current_dir(workshop.root()).arg("check-config").arg(&file);
        command.output().unwrap()
    };
    let missing = check();
    let errors = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && errors.contains("warm"), "{errors}");

    let start = golden("tiny/linear");
    let models =
        [1, 2].map(|seed| workshop.trained(&start, &format!("m{seed}"), seed, WeightType::F32));
    let output = workshop.path("warm");
    let settings =
        MergeSettings { models: &models, weights: &[], output: &output, weight_type: None };
    let record = merge(&settings).unwrap();
    let checked = check();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let mut command = program();
    command.current_dir(workshop.root()).arg("--config").arg(&file).args(["--port", "0"]);
    command.args(UNCACHED);
    let server = Server::spawn(command);
    let inputs = [pair("Where is the answer?", "At the end."), pair("Is it?", "Yes.")];
    let answer = server.score(&inputs);
    assert_eq!(answer["weights"], json!(record.weights));
    assert_eq!(answer["model"], "warm");
    let warm = floats(&answer["rewards"]);
    let apart: Vec<Vec<f32>> = models
        .iter()
        .map(|folder| {
            let server = Server::start(&["--model", folder.to_str().unwrap()]);
            floats(&server.score(&inputs)["rewards"])
        })
        .collect();
    for (index, reward) in warm.iter().enumerate() {
        let [a, b] = [apart[0][index], apart[1][index]];
        // Nearly linear in weights that differ so little, and neither of the two.
        assert!((reward - (a + b) / 2.0).abs() < 0.5 * (a - b).abs(), "{a} {b}: {reward}");
    }
}
