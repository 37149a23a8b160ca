//! A fresh reward head on a language model: where InfoRM training starts.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointFiles, CheckpointSource, FolderTensors, HeadConfig,
    MemoryTensors, ModelConfig, TensorSource, WeightType, check_output, write_checkpoint,
};
use crate::model::initialise_head;

/// Keys of `config.json` that describe a head, in other words than transformers'.
pub(in crate::train) const HEAD_KEYS: [&str; 6] = [
    "use_inform",
    "latent_dim",
    "encode_head_prefix",
    "decode_head_prefix",
    "use_complex_decoder",
    "value_head_prefix",
];
/// Those that describe its rewards.
const REWARD_KEYS: [&str; 5] = ["mean", "std", "num_labels", "id2label", "label2id"];

/// Keys under which releases of transformers keep the type of the stored weights.
const TYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// What older releases of transformers stored beside weights: masks and frequencies, which follow from `config.json`.
const BUFFERS: [&str; 3] = [".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"];

/// Writes the backbone of the Hugging Face folder or GGUF file `model`, with a fresh `head` that `seed` decides, to
/// the folder `output`. The tokenizer, the chat template and the keys of `config.json` that are not
/// the head's are kept; a language-model head, an earlier reward head and its baseline are not.
/// Weights stored as BF16 stay so, and the head is stored like them; all others become F32, which
/// loses nothing.
///
/// # Errors
/// Where `model` cannot be opened or `output` cannot be written; `output` is then as it was.
pub fn init_head(
    model: &Path,
    output: &Path,
    head: &HeadConfig,
    seed: u64,
) -> Result<(), CheckpointError> {
    check_output(output, &[model.to_path_buf()])?;
    let source = Checkpoint::open(model)?;
    let config = ModelConfig { head: head.clone(), reward_scale: None, ..source.config };
    let prefix = config.decoder.architecture.family.prefix();
    let (mut tensors, weight_type) = backbone(&source.tensors, prefix)?;
    initialise_head(&mut tensors, head, config.decoder.hidden_size, seed);

    let other_keys = other_keys(model, weight_type)?;
    let files = text_files(model)?;
    let contents =
        CheckpointFiles { config: &config, other_keys, tensors: &tensors, weight_type, files };
    write_checkpoint(output, &contents, |_| Ok((None, Vec::new())))
}

/// The keys of a folder's `config.json` that a checkpoint with a new head and weights stored as
/// `weight_type` keeps.
pub(in crate::train) fn other_keys(
    folder: &Path,
    weight_type: WeightType,
) -> Result<Map<String, Value>, CheckpointError> {
    let mut keys = CheckpointSource::open(folder)?.config_keys()?;
    keys.retain(|key, _| !HEAD_KEYS.iter().chain(&REWARD_KEYS).any(|of_head| of_head == key));
    name_type(&mut keys, weight_type);
    Ok(keys)
}

/// Has the keys of `config.json` that name the type of the stored weights name this one.
pub(in crate::train) fn name_type(keys: &mut Map<String, Value>, weight_type: WeightType) {
    for key in TYPE_KEYS {
        if let Some(value) = keys.get_mut(key) {
            *value = json!(weight_type.config_name());
        }
    }
}

/// Whether a stored tensor is no weight.
pub(in crate::train) fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

/// The files of a folder that decide a text's token ids, by name.
pub(in crate::train) fn text_files(
    folder: &Path,
) -> Result<Vec<(String, Vec<u8>)>, CheckpointError> {
    CheckpointSource::open(folder)?.text_files()
}

/// The backbone's tensors, whose names begin with `prefix`, and the type that stores them without loss. A model that was
/// saved without any head has no prefix before its tensors' names.
fn backbone(
    source: &FolderTensors,
    prefix: &str,
) -> Result<(MemoryTensors, WeightType), CheckpointError> {
    let headless = !source.headers().any(|(name, ..)| name.starts_with(prefix));
    let mut tensors = MemoryTensors::default();
    let mut weight_type = WeightType::Bf16;
    for (name, dtype, shape) in source.headers() {
        let target = match headless {
            _ if is_buffer(name) => continue,
            true => format!("{prefix}{name}"),
            false if name.starts_with(prefix) => name.to_owned(),
            false => continue,
        };
        if dtype != "BF16" {
            weight_type = WeightType::F32;
        }
        tensors.insert(&target, shape, source.f32(name, shape)?);
    }
    Ok((tensors, weight_type))
}
