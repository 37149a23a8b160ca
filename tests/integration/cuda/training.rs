//! Training on the CUDA device beside training on the CPU, from whose golden tests it follows what both should give. Needs the
//! feature `cuda` and a device, real or emulated (`tests/kernels/device`); skipped without one, unless `REQUIRE_CUDA` is set.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::golden::{golden, relative_error};
use candle_core::{Device, Tensor};
use inform::checkpoint::{FolderTensors, ModelConfig};
use inform::model::{Decoder, standard_normal};
use inform::ops::autograd::{AutogradOps, LoraConfig, Trains};
use inform::ops::cpu::Precision;
use inform::ops::cuda::training::CudaTraining;
use inform::ops::{DeviceOps, Packing, StateTensor};
use inform::train::{FitConfig, FitReport, fit};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Rows of the greatest batch here.
const ROWS: usize = 300;

/// The device, or why the test is skipped.
fn device(trains: Trains) -> Option<CudaTraining> {
    match CudaTraining::new(0, trains, ROWS) {
        Ok(ops) => Some(ops),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// Texts that share prefixes, one of them twice, and one of a single token.
fn texts() -> Vec<Vec<u32>> {
    let text = |tag: u32, common: u32, own: u32| -> Vec<u32> {
        (0..common).map(|i| 5 + i % 50).chain((0..own).map(|i| (31 * tag + 7 * i) % 60)).collect()
    };
    vec![text(1, 70, 9), text(2, 70, 80), text(3, 20, 0), text(4, 0, 1), text(2, 70, 80)]
}

/// Gradients of every parameter, of pooled hidden states with a given gradient, by the device and by the CPU in f32.
fn compare_gradients(model: &Path, trains: &Trains) {
    let Some(gpu) = device(trains.clone()) else { return };
    let config = ModelConfig::read(model).unwrap().decoder;
    let tensors = FolderTensors::open(model).unwrap();
    let packing = Packing::shared(&texts()).unwrap();
    let hidden = config.hidden_size;
    let known = standard_normal(3, 0, packing.sequences() * hidden);

    let cpu = AutogradOps::new(1, Precision::F32).unwrap().training(trains.clone());
    let decoder = Decoder::load(&cpu, &config, &tensors, 0).unwrap();
    // B of an adapter is 0 at first, and A would have no gradient.
    let parameters = cpu.parameters();
    let moved: Vec<Vec<f32>> = parameters
        .iter()
        .enumerate()
        .map(|(index, parameter)| {
            let values: Vec<f32> = parameter.var.flatten_all().unwrap().to_vec1().unwrap();
            let noise = standard_normal(9, index as u64, values.len());
            values.iter().zip(noise).map(|(value, noise)| value + 0.02 * noise).collect()
        })
        .collect();
    for (parameter, values) in parameters.iter().zip(&moved) {
        let shape = parameter.var.shape();
        let values = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        parameter.var.set(&values).unwrap();
    }
    let pooled = decoder.pooled(&cpu, &packing, decoder.embed(&cpu, &packing).unwrap()).unwrap();
    let seed = Tensor::from_slice(&known, pooled.shape(), &Device::Cpu).unwrap();
    let expected = cpu.seed(&pooled, seed).unwrap().backward().unwrap();

    let decoder = Decoder::load(&gpu, &config, &tensors, 0).unwrap();
    gpu.leave_out(decoder.norm().0);
    let on_device = gpu.parameters();
    for (number, parameter) in on_device.iter().enumerate() {
        let index = parameters.iter().position(|one| one.parts == parameter.parts).unwrap();
        gpu.write_parameter(number, StateTensor::Values, &moved[index]).unwrap();
    }
    gpu.record();
    let x = decoder.embed(&gpu, &packing).unwrap();
    let found = decoder.pooled(&gpu, &packing, x).unwrap();
    let states: Vec<f32> = pooled.flatten_all().unwrap().to_vec1().unwrap();
    let error = relative_error(&gpu.read(&found).unwrap(), &states);
    println!("pooled: {error:.1e}");
    assert!(error < 0.02, "pooled: {error:e}");
    let known = gpu.upload(known, hidden).unwrap();
    assert!(gpu.backward(&found, &known, None).unwrap().is_none());

    let mut compared = 0;
    for (number, parameter) in on_device.iter().enumerate() {
        let of_cpu = parameters.iter().find(|one| one.parts == parameter.parts).unwrap();
        let expected = expected.get(of_cpu.var.as_tensor()).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let found = gpu.read_parameter(number, StateTensor::Gradient).unwrap();
        let error = relative_error(&found, &expected);
        println!("{}: {error:.1e}", parameter.parts[0].0);
        // Factors of some ten products one after the other are rounded by 2^-9 each.
        assert!(error < 0.04, "{}: {error:e}", parameter.parts[0].0);
        compared += 1;
    }
    // All that the CPU trains but the final norm, which the head's side has.
    let decoders = parameters.iter().filter(|one| one.parts[0].0 != "model.norm.weight").count();
    assert!(compared == decoders && compared > 8, "{compared} of {decoders}");
}

#[test]
fn gradients_agree_with_the_cpu_to_the_precision_of_bf16() {
    compare_gradients(&golden("tiny/linear"), &Trains::All);
}

#[test]
fn gradients_of_a_sliding_window_agree_with_the_cpu() {
    compare_gradients(&golden("families/mistral"), &Trains::All);
}

#[test]
fn gradients_of_adapters_agree_with_the_cpu() {
    let targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"];
    let targets = targets.map(str::to_owned).to_vec();
    let lora = LoraConfig { rank: 4, alpha: 8.0, targets };
    compare_gradients(&golden("tiny/linear"), &Trains::Adapters { lora, seed: 5 });
}

/// The only precision of a GPU's products.
const BF16: &str = "dtype = \"bf16\"";

struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pairs = (0..24).map(|number| {
            let prompt = format!("What comes after {number}, and what comes after that?");
            let (right, wrong) = (number + 1, number * 7 % 24);
            json!({"prompt": prompt, "chosen": format!("{right}."), "rejected": format!("{wrong}!")})
        });
        let lines: Vec<String> = pairs.map(|pair| pair.to_string()).collect();
        fs::write(folder.path().join("pairs.jsonl"), lines.join("\n")).unwrap();
        Self(folder)
    }

    /// A settings file of a run to `output`.
    fn settings(&self, output: &str, device: &str, more: &str) -> PathBuf {
        let text = format!(
            "output = {:?}
weight_type = \"f32\"
device = \"{device}\"
evaluation.every_steps = 2
{more}
[start]
folder = {:?}
[head]
latent_dim = 4
[data]
files = [{:?}]
train_pairs = 16
max_tokens = 128
[optimiser]
learning_rate = 1e-3
weight_decay = 0.1
[schedule]
kind = \"constant\"
pairs_per_step = 4
micro_batch_tokens = 150
[progress]
every_steps = 1
",
            self.0.path().join(output),
            golden("tiny/linear"),
            self.0.path().join("pairs.jsonl"),
        );
        let file = self.0.path().join(format!("{output}.toml"));
        fs::write(&file, text).unwrap();
        file
    }

    fn fit(&self, output: &str, device: &str, more: &str) -> FitReport {
        fit(&FitConfig::read(&self.settings(output, device, more)).unwrap()).unwrap()
    }

    /// Every stored tensor.
    fn stored(&self, output: &str) -> Vec<(String, Vec<u8>)> {
        let file = self.0.path().join(output).join("model.safetensors");
        let bytes = fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut stored: Vec<(String, Vec<u8>)> = tensors
            .tensors()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.data().to_vec()))
            .collect();
        stored.sort();
        stored
    }

    /// The losses of the steps.
    fn losses(&self, output: &str) -> Vec<f64> {
        let log = fs::read_to_string(self.0.path().join(output).join("log.jsonl")).unwrap();
        log.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter_map(|record| record["loss"].as_f64())
            .collect()
    }
}

/// Losses of a run on the device beside those of the same run on the CPU, where that has bf16, too.
fn compare_runs(workshop: &Workshop, name: &str, more: &str) -> Option<(FitReport, FitReport)> {
    let (gpu, cpu) = (format!("{name}-gpu"), format!("{name}-cpu"));
    let found = workshop.fit(&gpu, "cuda:0", more);
    assert_eq!(workshop.losses(&gpu).len(), 4);
    if AutogradOps::new(1, Precision::Bf16).is_err() {
        println!("skipped beside the CPU: it has no bf16");
        return None;
    }
    let expected = workshop.fit(&cpu, "cpu", more);
    let (losses, of_cpu) = (workshop.losses(&gpu), workshop.losses(&cpu));
    println!("{name}: {losses:?} beside {of_cpu:?}");
    for (loss, of_cpu) in losses.iter().zip(of_cpu) {
        assert!((loss - of_cpu).abs() < 0.02 * of_cpu, "{loss} beside {of_cpu}");
    }
    let names = |output: &str| -> Vec<String> {
        workshop.stored(output).into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names(&gpu), names(&cpu));
    Some((found, expected))
}

#[test]
fn a_run_takes_the_steps_that_the_cpu_takes() {
    if device(Trains::All).is_none() {
        return;
    }
    let workshop = Workshop::new();
    for (name, mode) in
        [("full", BF16.to_owned()), ("lora", format!("{BF16}\nmode = \"lora\"\nlora.rank = 4"))]
    {
        if let Some((found, expected)) = compare_runs(&workshop, name, &mode) {
            assert_eq!(found.parameters, expected.parameters);
            assert_eq!(found.held_out.unwrap().pairs, expected.held_out.unwrap().pairs);
        }
    }
}

/// Computing activations again changes no bit, and neither does being killed, with what an evaluation kept as the best.
#[test]
fn recomputed_or_killed_it_ends_in_the_same_weights() {
    if device(Trains::All).is_none() {
        return;
    }
    let workshop = Workshop::new();
    for mode in ["", "mode = \"lora\"\nlora.rank = 4"] {
        let more = format!("{BF16}\n{mode}\nevaluation.keep_best = true");
        let begun = Instant::now();
        workshop.fit("whole", "cuda:0", &more);
        let duration = begun.elapsed();
        let whole = workshop.stored("whole");
        let more = format!("{more}\nrecompute = true");
        workshop.fit("recomputed", "cuda:0", &more);
        assert!(
            workshop.stored("recomputed") == whole,
            "other weights where layers are recomputed"
        );

        let settings = workshop.settings("killed", "cuda:0", &more);
        let run = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
            command.arg("fit").arg("--config").arg(&settings).stdout(Stdio::null());
            command
        };
        for share in [0.4, 0.6, 0.8] {
            let mut child = run().stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_secs_f64(share * duration.as_secs_f64()));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let done = run().output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        println!("{said}");
        assert!(workshop.stored("killed") == whole, "other weights after {said}");
    }
}

#[test]
fn features_of_a_frozen_part_come_from_the_device() {
    if device(Trains::All).is_none() {
        return;
    }
    let workshop = Workshop::new();
    let features = "features.dtype = \"bf16\"";
    compare_runs(&workshop, "head", &format!("mode = \"head\"\n{features}"));
    compare_runs(
        &workshop,
        "last",
        &format!("mode = \"last_layers\"\nlast_layers = 1\n{features}"),
    );
}

/// The emulated device has as little memory as one asks for.
#[test]
fn a_gpu_without_room_for_a_batch_is_told_what_to_lower() {
    let Some(device) = device(Trains::All) else { return };
    if !device.name().contains("Emulated") {
        return;
    }
    let workshop = Workshop::new();
    let settings = workshop.settings("full", "cuda", BF16).display().to_string();
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replace("micro_batch_tokens = 150", "micro_batch_tokens = 8192"))
        .unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_trainer"))
        .args(["fit", "--config", &settings])
        .env("EMULATED_MEMORY", "8000000")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let keys = "schedule.micro_batch_tokens, recompute: the GPU has no room";
    assert!(!done.status.success() && said.contains(keys), "{said}");
}

#[test]
fn settings_that_a_gpu_has_not_are_refused() {
    let workshop = Workshop::new();
    for (device, more, said) in [
        ("cuda:0,1", BF16, "device: the trainer uses one GPU, 2 are named"),
        ("auto", BF16, "device: expected cpu, cuda or cuda:N"),
        ("cuda", "", "dtype: GPUs multiply in bf16"),
        ("cuda", "mode = \"head\"", "features.dtype: GPUs multiply in bf16"),
    ] {
        let file = workshop.settings("refused", device, more);
        let error = format!("{:#}", FitConfig::read(&file).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
}
