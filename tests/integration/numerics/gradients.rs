//! Gradients of the InfoRM loss against PyTorch's autograd, for every tensor of a checkpoint of every family: with
//! activations kept and computed again, with common prefixes computed once and in every sequence; and those of adapters and
//! of last layers against the gradients of the whole.
//!
//! `tests/golden/gradients.py` and `tests/golden/family_gradients.py` make the golden values.

use std::collections::BTreeMap;

use crate::support::golden::{Golden, golden, relative_error, sketch, sketch_error};
use candle_core::{Device, Tensor};
use inform::checkpoint::{
    Checkpoint, DecodeKind, FolderTensors, HeadConfig, MemoryTensors, ModelConfig,
};
use inform::model::RewardModel;
use inform::ops::Packing;
use inform::ops::autograd::{AutogradOps, LoraConfig, Trains, adapter_name};
use inform::ops::cpu::Precision;
use inform::train::{Backward, Gradients, LossConfig, pair_loss};

/// The gradient of every checkpoint tensor, by its name.
type ByName = BTreeMap<String, Vec<f32>>;

/// Loss and gradients. Even sequences are preferred to odd ones; `pair_loss` wants the preferred ones first.
fn gradients(
    model: &RewardModel<AutogradOps>,
    sequences: &[Vec<u32>],
    noise: &[f32],
    (shares, recompute): (bool, bool),
    entering: Option<&dyn Fn(&Packing) -> Tensor>,
) -> (f64, ByName) {
    let order: Vec<usize> =
        (0..sequences.len()).step_by(2).chain((1..sequences.len()).step_by(2)).collect();
    let texts: Vec<&Vec<u32>> = order.iter().map(|&index| &sequences[index]).collect();
    let packing = if shares { Packing::shared(&texts) } else { Packing::new(&texts) }.unwrap();
    let d = noise.len() / sequences.len();
    let noise: Vec<f32> = order.iter().flat_map(|&i| &noise[i * d..][..d]).copied().collect();
    let entering = entering.map(|entering| entering(&packing));

    let parameters = model.ops().parameters();
    let mut gradients = Gradients::new(parameters.clone());
    let backward = Backward {
        model,
        packing: &packing,
        entering: entering.as_ref(),
        noise: Some(&noise),
        recompute,
    };
    let loss = |output: &_| Ok(pair_loss(output, &LossConfig::default(), &[])?);
    let (_, loss) = backward.run(loss, &mut gradients).unwrap();

    let mut found = ByName::new();
    for (parameter, gradient) in parameters.into_iter().zip(gradients.sums()) {
        let gradient = gradient.as_ref().unwrap();
        assert_eq!(gradient.shape(), parameter.var.shape());
        let mut first = 0;
        for (tensor, rows) in parameter.parts {
            let part = gradient.narrow(0, first, rows).unwrap().flatten_all().unwrap();
            first += rows;
            let earlier = found.insert(tensor, part.to_vec1().unwrap());
            assert!(earlier.is_none(), "a tensor is trained twice");
        }
    }
    (f64::from(loss.total.to_scalar::<f32>().unwrap()), found)
}

fn load(name: &str) -> (Checkpoint, RewardModel<AutogradOps>) {
    let checkpoint = Checkpoint::open(&golden("tiny").join(name)).unwrap();
    let ops = AutogradOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors).unwrap();
    (checkpoint, model)
}

fn compare(name: &str, file: &str, sequences: &[Vec<u32>]) {
    let (checkpoint, model) = load(name);
    let expected = Golden::read(file);
    let noise = expected.f32(&format!("{name}.noise"));
    let expected_loss = f64::from(expected.f32(&format!("{name}.loss"))[0]);
    let tensors = checkpoint.tensors.to_memory().unwrap();
    let stored: Vec<&str> = tensors.iter().map(|(tensor, ..)| tensor).collect();
    for way in [(false, false), (false, true), (true, false), (true, true)] {
        let (loss, found) = gradients(&model, sequences, &noise, way, None);
        let error = (loss / expected_loss - 1.0).abs();
        assert!(error < 1e-5, "{name}: loss: {error:e}");
        assert!(found.keys().eq(&stored), "{name}: every stored tensor is trained, once");
        let mut worst = (0f64, "");
        for (tensor, gradient) in &found {
            let error = sketch_error(&sketch(gradient), &expected.f64(&format!("{name}:{tensor}")));
            assert!(error < 1e-5, "{name}, {way:?}: {tensor}: {error:e}");
            if error > worst.0 {
                worst = (error, tensor);
            }
        }
        println!("{name}, {file}, (shared, recomputed) {way:?}: {:.1e}, of {}", worst.0, worst.1);
    }
}

fn own_sequences(name: &str) -> Vec<Vec<u32>> {
    Golden::read(&format!("tiny/{name}.safetensors")).sequences()
}

#[test]
fn linear_decode_head_with_grouped_queries() {
    compare("linear", "gradients.safetensors", &own_sequences("linear"));
}

#[test]
fn gated_decode_head() {
    compare("gated", "gradients.safetensors", &own_sequences("gated"));
}

#[test]
fn sequences_that_begin_alike() {
    let file = "shared_gradients.safetensors";
    let sequences = Golden::read(file).sequences();
    let packing = Packing::shared(&sequences).unwrap();
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    assert!(packing.rows() + 3 * 90 < tokens, "the prompts are computed once");
    compare("linear", file, &sequences);
    compare("gated", file, &sequences);
}

/// A family's model with the head of the golden values.
fn family(name: &str, expected: &Golden) -> (ModelConfig, MemoryTensors) {
    let folder = golden("families").join(name);
    let mut config = ModelConfig::read(&folder).unwrap();
    let latent_dim = expected.f32("decode_head.weight").len();
    config.head = HeadConfig::inform(latent_dim, DecodeKind::Linear);
    let mut tensors = MemoryTensors::default();
    let score = |name: &str| name == "score.weight";
    let stored = FolderTensors::open(&folder).unwrap().to_memory().unwrap();
    for (name, shape, values) in stored.iter().filter(|(name, ..)| !score(name)) {
        tensors.insert(name, shape, values.to_vec());
    }
    for (name, rows) in [("encode_head.weight", 2 * latent_dim), ("decode_head.weight", 1)] {
        let values = expected.f32(name);
        tensors.insert(name, &[rows, values.len() / rows], values);
    }
    (config, tensors)
}

fn compare_family(name: &str) {
    let expected = Golden::read("family_gradients.safetensors");
    let (config, tensors) = family(name, &expected);
    let ops = AutogradOps::new(1, Precision::F32).unwrap();
    let model = RewardModel::load(ops, &config, &tensors).unwrap();
    let (sequences, noise) = (expected.sequences(), expected.f32("noise"));
    let expected_loss = f64::from(expected.f32(&format!("{name}.loss"))[0]);
    let sketches: Vec<f64> = expected.f32(name).into_iter().map(f64::from).collect();
    for way in [(false, false), (false, true), (true, false), (true, true)] {
        let (loss, found) = gradients(&model, &sequences, &noise, way, None);
        let error = (loss / expected_loss - 1.0).abs();
        assert!(error < 1e-5, "{name}: loss: {error:e}");
        // A gradient is laid out as its tensor is.
        let mut stored = MemoryTensors::default();
        for parameter in model.ops().parameters() {
            for (tensor, rows) in parameter.parts {
                let shape = [&[rows], &parameter.var.dims()[1..]].concat();
                config.decoder.store(&mut stored, &tensor, &shape, found[&tensor].clone());
            }
        }
        let shapes = |tensors: &MemoryTensors| -> Vec<(String, Vec<usize>)> {
            tensors.iter().map(|(name, shape, _)| (name.to_owned(), shape.to_vec())).collect()
        };
        assert_eq!(shapes(&stored), shapes(&tensors), "{name}: every stored tensor is trained");
        let mut worst = (0f64, "");
        let mut expected = sketches.chunks_exact(sketches.len() / tensors.iter().count());
        for (tensor, _, gradient) in stored.iter() {
            let error = sketch_error(&sketch(gradient), expected.next().unwrap());
            assert!(error < 1e-5, "{name}, {way:?}: {tensor}: {error:e}");
            if error > worst.0 {
                worst = (error, tensor);
            }
        }
        assert!(expected.next().is_none());
        println!("{name}, (shared, recomputed) {way:?}: {:.1e}, of {}", worst.0, worst.1);
    }
}

#[test]
fn llama_with_biases_and_scaled_rotary_embedding() {
    ["llama_bias", "llama_linear", "llama_dynamic", "llama_llama3", "llama_yarn"]
        .into_iter()
        .for_each(compare_family);
}

#[test]
fn mistral_and_qwen() {
    ["mistral", "qwen2", "qwen2_sliding", "qwen3"].into_iter().for_each(compare_family);
}

#[test]
fn gpt_neox_and_phi3() {
    ["gpt_neox", "gpt_neox_sequential", "phi3", "phi3_long"].into_iter().for_each(compare_family);
}

#[test]
fn gemma() {
    ["gemma2", "gemma3"].into_iter().for_each(compare_family);
}

#[test]
fn adapters_have_the_gradients_of_what_they_are_merged_into() {
    let checkpoint = Checkpoint::open(&golden("tiny/linear")).unwrap();
    let noise = Golden::read("gradients.safetensors").f32("linear.noise");
    let tensors = checkpoint.tensors.to_memory().unwrap();
    compare_adapters(&checkpoint.config, &tensors, &own_sequences("linear"), &noise);
    // Beside weights with biases.
    let expected = Golden::read("family_gradients.safetensors");
    let (config, tensors) = family("llama_bias", &expected);
    compare_adapters(&config, &tensors, &expected.sequences(), &expected.f32("noise"));
}

/// Of `W + scale B A`: `dA = scale B^T dW` and `dB = scale dW A^T`, with dW that of a whole model with these weights.
fn compare_adapters(
    config: &ModelConfig,
    tensors: &MemoryTensors,
    sequences: &[Vec<u32>],
    noise: &[f32],
) {
    let targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].map(str::to_owned);
    let lora = LoraConfig { rank: 3, alpha: 6.0, targets: targets.to_vec() };
    let scale = lora.scale() as f32;
    let ops = AutogradOps::new(1, Precision::F32)
        .unwrap()
        .training(Trains::Adapters { lora: lora.clone(), seed: 1 });
    let model = RewardModel::load(ops, config, tensors).unwrap();

    // B starts at 0, of which A has no gradient.
    let mut factors = BTreeMap::new();
    for (index, parameter) in model.ops().parameters().into_iter().enumerate() {
        let (name, _) = &parameter.parts[0];
        if name.contains(".lora_") {
            let count = parameter.var.elem_count();
            let values: Vec<f32> =
                (0..count).map(|i| ((i * 37 + index * 11) % 23) as f32 / 230.0 - 0.05).collect();
            let values = Tensor::from_vec(values, parameter.var.shape(), &Device::Cpu).unwrap();
            parameter.var.set(&values).unwrap();
            factors.insert(name.clone(), values);
        }
    }
    assert_eq!(factors.len(), 2 * targets.len() * config.decoder.num_hidden_layers);

    let mut merged = tensors.clone();
    let mut shapes = BTreeMap::new();
    for (name, shape, values) in tensors.iter() {
        if lora.adapts(name) && name.ends_with(".weight") {
            let factor = |which| &factors[&adapter_name(name, which)];
            let product = factor('B').matmul(factor('A')).unwrap().flatten_all().unwrap();
            let product: Vec<f32> = product.to_vec1().unwrap();
            let sum = values.iter().zip(product).map(|(w, p)| w + scale * p).collect();
            merged.insert(name, shape, sum);
            shapes.insert(name.to_owned(), (shape[0], shape[1]));
        }
    }
    let ops = AutogradOps::new(1, Precision::F32).unwrap();
    let whole = RewardModel::load(ops, config, &merged).unwrap();

    for way in [(false, false), (true, true)] {
        let (loss, found) = gradients(&model, sequences, noise, way, None);
        let (expected_loss, expected) = gradients(&whole, sequences, noise, way, None);
        assert!((loss / expected_loss - 1.0).abs() < 1e-5, "{loss} {expected_loss}");
        let heads = found.keys().filter(|name| !name.contains(".lora_")).count();
        assert_eq!(found.len(), factors.len() + heads);
        assert_eq!(heads, 2, "what adapters stand beside is frozen; heads are trained");
        for (name, &shape) in &shapes {
            let dense = Tensor::from_slice(&expected[name], shape, &Device::Cpu).unwrap();
            let factor = |which| &factors[&adapter_name(name, which)];
            let a = factor('B').t().unwrap().matmul(&dense).unwrap();
            let b = dense.matmul(&factor('A').t().unwrap()).unwrap();
            for (which, gradient) in [('A', a), ('B', b)] {
                let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
                let expected: Vec<f32> = gradient.iter().map(|g| scale * g).collect();
                let error = relative_error(&found[&adapter_name(name, which)], &expected);
                assert!(error < 1e-5, "{name} {which}: {error:e}");
            }
        }
    }
}

#[test]
fn last_layers_have_the_gradients_that_they_have_in_the_whole() {
    let (checkpoint, whole) = load("linear");
    let last = checkpoint.config.decoder.num_hidden_layers - 1;
    let ops = AutogradOps::new(1, Precision::F32).unwrap();
    let tail = RewardModel::load_from(ops, &checkpoint.config, &checkpoint.tensors, last).unwrap();
    let entering = |packing: &Packing| whole.layer_input(packing, last).unwrap().detach();
    let sequences = Golden::read("shared_gradients.safetensors").sequences();
    let noise = Golden::read("shared_gradients.safetensors").f32("linear.noise");
    for way in [(false, false), (true, true)] {
        let (expected_loss, expected) = gradients(&whole, &sequences, &noise, way, None);
        let (loss, found) = gradients(&tail, &sequences, &noise, way, Some(&entering));
        assert_eq!(loss, expected_loss);
        assert!(found.keys().any(|name| name.starts_with(&format!("model.layers.{last}."))));
        for (name, gradient) in &found {
            let frozen = (0..last).any(|layer| name.starts_with(&format!("model.layers.{layer}.")));
            assert!(!frozen && !name.contains("embed"), "{name} is frozen");
            let error = relative_error(gradient, &expected[name]);
            assert!(error < 1e-6, "{name}: {error:e}");
        }
        // The final norm and the head besides.
        assert!(
            found.contains_key("model.norm.weight") && found.contains_key("encode_head.weight")
        );
    }
}
