//! Low-rank adapters in a folder of their own, as PEFT reads them.

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::checkpoint::MemoryTensors;
use crate::ops::autograd::LoraConfig;

/// Files `adapter/adapter_config.json` and `adapter/adapter_model.safetensors` (f32), for `base`, a folder or a name:
/// `PeftModel.from_pretrained(model, "CHECKPOINT/adapter")` on a causal language model or a sequence classifier.
///
/// # Errors
/// None in practice: writing to memory.
pub(super) fn files(
    lora: &LoraConfig,
    adapters: &MemoryTensors,
    base: &str,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let config = json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": lora.targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    let tensors: Vec<(String, &[usize], Vec<u8>)> = adapters
        .iter()
        .map(|(name, shape, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (format!("base_model.model.{name}"), shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let in_folder = |name: &str| format!("adapter/{name}");
    Ok(vec![
        (in_folder("adapter_config.json"), serde_json::to_vec_pretty(&config)?),
        (in_folder("adapter_model.safetensors"), safetensors::serialize(views, Some(metadata))?),
    ])
}
