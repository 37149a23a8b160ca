//! Configurations and tensors of every family, each changed in one place: an error that names the file and the key or
//! the tensor, before anything is served.

use std::fs;
use std::path::Path;

use crate::support::golden::golden;
use inform::checkpoint::{CheckpointError, FolderTensors, ModelConfig};
use inform::model::RewardModel;
use inform::ops::cpu::{CpuOps, Precision};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

fn load(folder: &Path) -> Result<RewardModel<CpuOps>, CheckpointError> {
    let config = ModelConfig::read(folder)?;
    let ops = CpuOps::new(1, Precision::F32).unwrap();
    RewardModel::load(ops, &config, &FolderTensors::open(folder)?)
}

/// A copy of a family's model with another configuration.
fn with_config(name: &str, change: impl Fn(&mut Map<String, Value>)) -> tempfile::TempDir {
    let (scratch, source) = (tempfile::tempdir().unwrap(), golden("families").join(name));
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(scratch.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    fs::copy(source.join("model.safetensors"), scratch.path().join("model.safetensors")).unwrap();
    scratch
}

fn assert_refused(what: &str, folder: &Path, parts: &[&str]) {
    let error = load(folder).map(drop).expect_err(what).to_string();
    println!("{what}: {error}");
    for part in parts {
        assert!(error.contains(part), "{what}: no {part:?} in: {error}");
    }
}

#[test]
fn a_wrong_key_is_named() {
    let rope = |key: &str, value: Value| {
        let mut rope = json!({"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        rope[key] = value;
        rope
    };
    let mut without_factor = rope("rope_type", json!("linear"));
    without_factor.as_object_mut().unwrap().remove("factor");
    // Model, key, its wrong value (null is a key left out), and what the error says beside the file.
    let cases: Vec<(&str, &str, Value, &[&str])> = vec![
        (
            "llama_llama3",
            "rope_parameters",
            rope("rope_type", json!("spiral")),
            &["rope_parameters.rope_type", "spiral", "yarn"],
        ),
        (
            "llama_llama3",
            "rope_scaling",
            json!({"type": "su", "factor": 2}),
            &["rope_scaling.type", "su"],
        ),
        ("llama_llama3", "rope_parameters", without_factor, &["rope_parameters.factor", "missing"]),
        (
            "llama_llama3",
            "rope_parameters",
            rope("factor", json!(0)),
            &["rope_parameters.factor", "above 0"],
        ),
        (
            "llama_llama3",
            "rope_parameters",
            rope("factor", json!("8")),
            &["rope_parameters.factor", "string"],
        ),
        (
            "llama_llama3",
            "rope_parameters",
            rope("high_freq_factor", json!(1)),
            &["rope_parameters.high_freq_factor", "low_freq_factor"],
        ),
        (
            "llama_llama3",
            "rope_parameters",
            rope("rope_theta", json!(-1)),
            &["rope_parameters.rope_theta", "-1"],
        ),
        (
            "llama_llama3",
            "rope_parameters",
            rope("original_max_position_embeddings", json!(0)),
            &["original_max_position_embeddings", "at least 1"],
        ),
        ("llama_llama3", "rope_parameters", json!("llama3"), &["rope_parameters", "object"]),
        (
            "llama_llama3",
            "rope_parameters",
            rope("partial_rotary_factor", json!(0.5)),
            &["partial_rotary_factor", "all channels"],
        ),
        ("llama_bias", "mlp_bias", json!(true), &["mlp_bias", "true"]),
        ("llama_bias", "hidden_act", json!("relu"), &["hidden_act", "relu", "silu"]),
        ("llama_bias", "rms_norm_eps", Value::Null, &["rms_norm_eps", "missing"]),
        ("llama_bias", "head_dim", json!(5), &["head_dim", "even", "5"]),
        ("llama_bias", "num_hidden_layers", json!(0), &["num_hidden_layers", "at least 1"]),
        ("llama_bias", "num_hidden_layers", json!(-2), &["num_hidden_layers", "-2"]),
        (
            "llama_bias",
            "architectures",
            json!(["LlamaForImages"]),
            &["architectures", "LlamaForImages", "Gemma2"],
        ),
        ("llama_bias", "architectures", json!("LlamaModel"), &["architectures", "sequence"]),
        ("qwen2", "vocab_size", Value::Null, &["vocab_size", "missing"]),
        ("qwen2", "hidden_size", json!(15), &["hidden_size", "even", "15"]),
        ("qwen2_sliding", "layer_types", json!(["full_attention"]), &["layer_types", "1", "2"]),
        (
            "qwen2_sliding",
            "layer_types",
            json!(["full_attention", "chunked"]),
            &["layer_types", "chunked"],
        ),
        ("qwen2_sliding", "sliding_window", json!(0), &["sliding_window", "at least 1"]),
        ("mistral", "sliding_window", json!("wide"), &["sliding_window", "wide"]),
        ("mistral", "num_key_value_heads", json!(3), &["num_key_value_heads", "3", "4"]),
        ("qwen3", "intermediate_size", json!(23), &["intermediate_size", "even", "23"]),
        ("gpt_neox", "hidden_act", json!("swish"), &["hidden_act", "swish", "gelu_new"]),
        ("gpt_neox", "num_attention_heads", json!(3), &["hidden_size", "3", "16"]),
        (
            "gpt_neox",
            "rope_parameters",
            json!({"partial_rotary_factor": 0.1}),
            &["partial_rotary_factor", "4 channels", "0"],
        ),
        (
            "phi3",
            "rope_parameters",
            json!({"rope_type": "longrope"}),
            &["rope_parameters.short_factor", "missing"],
        ),
        (
            "phi3",
            "rope_scaling",
            json!({"type": "su", "short_factor": [0]}),
            &["rope_scaling.short_factor", "above 0"],
        ),
        (
            "phi3_long",
            "rope_parameters",
            json!({"rope_type": "longrope", "short_factor": [1, 2, 3]}),
            &["short_factor", "3 factors", "2 frequencies"],
        ),
        ("gemma2", "hidden_activation", json!("gelu"), &["hidden_activation", "gelu_pytorch_tanh"]),
        ("gemma2", "attn_logit_softcapping", json!(-50), &["attn_logit_softcapping", "-50"]),
        ("gemma2", "query_pre_attn_scalar", json!(0), &["query_pre_attn_scalar", "above 0"]),
        ("gemma2", "use_bidirectional_attention", json!(true), &["use_bidirectional_attention"]),
        ("gemma3", "text_config", json!({}), &["text_config", "Gemma3ForCausalLM"]),
        (
            "gemma3",
            "rope_parameters",
            json!({"full_attention": {"rope_type": "linear"}}),
            &["rope_parameters.full_attention.factor", "missing"],
        ),
    ];
    for (name, key, value, parts) in cases {
        let what = format!("{name}: {key} = {value}");
        let scratch = with_config(name, |config| {
            config.insert(key.to_owned(), value.clone());
        });
        let parts: Vec<&str> = parts.iter().copied().chain(["config.json"]).collect();
        assert_refused(&what, scratch.path(), &parts);
    }
}

/// A copy of a family's model with tensors as `change` makes them: their shape and bytes, or `None` to leave one out.
fn with_tensors(
    name: &str,
    change: impl Fn(&str, Vec<usize>, Vec<u8>) -> Option<(Vec<usize>, Vec<u8>)>,
) -> tempfile::TempDir {
    let scratch = with_config(name, |_| ());
    let file = scratch.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors: Vec<_> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .filter_map(|(name, tensor)| {
            let (shape, data) = change(&name, tensor.shape().to_vec(), tensor.data().to_vec())?;
            Some((name, tensor.dtype(), shape, data))
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    scratch
}

#[test]
fn a_wrong_tensor_is_named_as_the_file_names_it() {
    for (model, tensor) in [
        ("qwen2", "model.layers.1.self_attn.q_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.k_norm.weight"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight"),
        ("gpt_neox", "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"),
        ("gpt_neox", "gpt_neox.final_layer_norm.bias"),
        ("gpt_neox", "gpt_neox.embed_in.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight"),
        ("phi3", "model.layers.1.mlp.gate_up_proj.weight"),
        ("gemma2", "model.layers.1.pre_feedforward_layernorm.weight"),
        ("gemma3", "score.weight"),
    ] {
        let file = "model.safetensors";
        let missing =
            with_tensors(model, |name, shape, data| (name != tensor).then_some((shape, data)));
        assert_refused(&format!("no {tensor}"), missing.path(), &[file, tensor, "no tensor"]);
        let longer = with_tensors(model, |name, mut shape, mut data| {
            if name == tensor {
                data.extend_from_within(..data.len() / shape[0]);
                shape[0] += 1;
            }
            Some((shape, data))
        });
        assert_refused(&format!("a longer {tensor}"), longer.path(), &[file, tensor, "has shape"]);
        let broken = with_tensors(model, |name, shape, mut data| {
            if name == tensor {
                data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            Some((shape, data))
        });
        assert_refused(&format!("NaN in {tensor}"), broken.path(), &[file, tensor, "finite"]);
    }
}
