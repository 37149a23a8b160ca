//! Low-rank adapters in a folder of their own, as PEFT reads them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, json};

use crate::checkpoint::{DecoderConfig, MemoryTensors, TensorPlace};
use crate::ops::autograd::{LoraConfig, adapter_name};

/// The adapter of a linear layer as the family has it, which may be several of Llama's.
#[derive(Default)]
struct Module {
    /// Columns of `A`.
    inputs: usize,
    /// Rows of `B`.
    outputs: usize,
    parts: Vec<AdaptedPart>,
}

/// The adapter of a layer with Llama's name: where its outputs are, `A` `[rank, inputs]` and `B` `[its outputs, rank]`.
struct AdaptedPart {
    place: TensorPlace,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Module {
    /// `A` of all parts one below the other, `[parts * rank, inputs]`.
    fn a(&self) -> Vec<f32> {
        self.parts.iter().flat_map(|part| &part.a).copied().collect()
    }

    /// `B` of each part in the rows and columns of its own, `[outputs, parts * rank]`: zeros elsewhere.
    fn b(&self, rank: usize) -> Vec<f32> {
        let columns = self.parts.len() * rank;
        let mut values = vec![0.0; self.outputs * columns];
        for (index, part) in self.parts.iter().enumerate() {
            let (_, rows) = part.place.rows_of(part.b.len() / rank);
            for (row, own) in rows.into_iter().zip(part.b.chunks_exact(rank)) {
                values[row * columns + index * rank..][..rank].copy_from_slice(own);
            }
        }
        values
    }
}

/// Files `adapter/adapter_config.json` and `adapter/adapter_model.safetensors` (f32), for `base`, a folder or a name:
/// `PeftModel.from_pretrained(model, "CHECKPOINT/adapter")` on a causal language model or a sequence classifier. Where the
/// family has one layer for several of Llama's, its adapter is theirs side by side, of as many times their rank.
///
/// # Errors
/// None in practice: writing to memory.
pub(in crate::train) fn files(
    lora: &LoraConfig,
    adapters: &MemoryTensors,
    decoder: &DecoderConfig,
    base: &str,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let modules = modules(lora.rank, adapters, decoder)?;
    let mut targets = BTreeSet::new();
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (name, module) in &modules {
        let target = name.rsplit('.').next().unwrap_or(name);
        targets.insert(target);
        let parts = module.parts.len();
        if parts > 1 {
            ranks.insert(target.to_owned(), json!(parts * lora.rank));
            alphas.insert(target.to_owned(), json!(parts as f64 * lora.alpha));
        }
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, module) in &modules {
        let rank = module.parts.len() * lora.rank;
        let factors = [
            ('A', vec![rank, module.inputs], module.a()),
            ('B', vec![module.outputs, rank], module.b(lora.rank)),
        ];
        for (factor, shape, values) in factors {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let name = format!("base_model.model.{}", adapter_name(name, factor));
            tensors.push((name, shape, bytes));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let in_folder = |name: &str| format!("adapter/{name}");
    Ok(vec![
        (in_folder("adapter_config.json"), serde_json::to_vec_pretty(&config)?),
        (in_folder("adapter_model.safetensors"), safetensors::serialize(views, Some(metadata))?),
    ])
}

/// The adapted layers by the family's names.
fn modules(
    rank: usize,
    adapters: &MemoryTensors,
    decoder: &DecoderConfig,
) -> anyhow::Result<BTreeMap<String, Module>> {
    let factors: BTreeMap<&str, (&[usize], &[f32])> =
        adapters.iter().map(|(name, shape, values)| (name, (shape, values))).collect();
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for (name, &(shape, a)) in &factors {
        let Some(layer) = name.strip_suffix(".lora_A.weight") else { continue };
        let weight = format!("{layer}.weight");
        let (_, b) = factors
            .get(adapter_name(&weight, 'B').as_str())
            .with_context(|| format!("{name}: no B beside it"))?;
        let place = decoder.place(&weight);
        let own = place.name.strip_suffix(".weight").unwrap_or(&place.name);
        let module = modules.entry(own.to_owned()).or_default();
        module.inputs = shape[1];
        (module.outputs, _) = place.rows_of(b.len() / rank);
        module.parts.push(AdaptedPart { place, a: a.to_vec(), b: b.to_vec() });
    }
    Ok(modules)
}
