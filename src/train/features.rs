//! Features of a frozen backbone: pooled hidden states, computed once by the inference engine and kept on disk.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use super::config::FeatureConfig;
use super::data::EncodedPair;
use crate::checkpoint::Checkpoint;
use crate::model::RewardModel;
use crate::ops::cpu::CpuOps;
use crate::ops::{Ops, Packing};

/// Tokens of a batch; prefixes that pairs share are computed once.
const BATCH_TOKENS: usize = 8192;
/// Name of the tensor in a file of features.
const TENSOR: &str = "features";

/// Hidden states before the final norm at the last token of each pair's chosen and rejected text: `[2 pairs, hidden]`,
/// a pair's two rows one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Features {
    pub(super) values: Vec<f32>,
    pub(super) hidden: usize,
}

impl Features {
    /// Of the checkpoint's backbone, from `config.folder` where they are there already.
    ///
    /// # Errors
    /// A precision that this processor has not, a failing device, or a folder that cannot be written.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        pairs: &[EncodedPair],
        config: &FeatureConfig,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let ops = CpuOps::new(threads, config.dtype).context("features.dtype")?;
        let hidden = checkpoint.config.decoder.hidden_size;
        let name = digest(checkpoint, pairs, &ops);
        let file = config.folder.as_ref().map(|folder| folder.join(format!("{name}.safetensors")));
        if let Some(file) = file.as_deref().filter(|file| file.exists()) {
            let features = Self::read(file, 2 * pairs.len(), hidden)?;
            eprintln!("features of {} pairs from {}", pairs.len(), file.display());
            return Ok(features);
        }
        let model = RewardModel::load(ops, &checkpoint.config, &checkpoint.tensors)?;
        let features = Self { values: compute(&model, pairs)?, hidden };
        if let Some(file) = &file {
            features.write(file)?;
        }
        Ok(features)
    }

    fn read(file: &Path, rows: usize, hidden: usize) -> anyhow::Result<Self> {
        let damaged = || format!("{}: not the features it is named for: delete it", file.display());
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        let tensors = SafeTensors::deserialize(&bytes).with_context(damaged)?;
        let tensor = tensors.tensor(TENSOR).with_context(damaged)?;
        let is_right = tensor.dtype() == Dtype::F32 && tensor.shape() == [rows, hidden];
        anyhow::ensure!(is_right, damaged());
        let (values, _) = tensor.data().as_chunks::<4>();
        Ok(Self { values: values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(), hidden })
    }

    /// In one step: a run that is killed leaves no half file under the name.
    fn write(&self, file: &Path) -> anyhow::Result<()> {
        let folder = file.parent().context("features.folder")?;
        let named = || format!("features.folder: {}", folder.display());
        fs::create_dir_all(folder).with_context(named)?;
        let bytes: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![self.values.len() / self.hidden, self.hidden];
        let view = TensorView::new(Dtype::F32, shape, &bytes)?;
        let staged = tempfile::NamedTempFile::new_in(folder).with_context(named)?;
        fs::write(staged.path(), safetensors::serialize([(TENSOR, view)], None)?)
            .with_context(named)?;
        staged.persist(file).with_context(named)?;
        Ok(())
    }
}

/// Names what the features depend on: the backbone's weights, the texts, and how products are rounded.
fn digest(checkpoint: &Checkpoint, pairs: &[EncodedPair], ops: &CpuOps) -> String {
    let mut hash = Sha256::new();
    let decoder = serde_json::to_vec(&checkpoint.config.decoder).unwrap_or_default();
    hash.update(decoder);
    hash.update(format!("\n{} {}", ops.isa().name(), ops.precision().name()));
    checkpoint.tensors.for_each(|name, dtype, shape, bytes| {
        if name.starts_with("model.") {
            hash.update(format!("\n{name} {dtype} {shape:?}\n"));
            hash.update(bytes);
        }
    });
    for text in pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]) {
        hash.update((text.len() as u64).to_le_bytes());
        for id in text {
            hash.update(id.to_le_bytes());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compute(model: &RewardModel<CpuOps>, pairs: &[EncodedPair]) -> anyhow::Result<Vec<f32>> {
    let bar = ProgressBar::new(pairs.len() as u64).with_style(ProgressStyle::with_template(
        "features {bar:30} {pos}/{len} pairs, {elapsed} + {eta}  {msg}",
    )?);
    let begun = Instant::now();
    let (mut values, mut tokens) = (Vec::new(), 0);
    let mut rest = pairs;
    while !rest.is_empty() {
        let mut batch_tokens = 0;
        let fitting = rest.iter().take_while(|pair| {
            batch_tokens += pair.chosen.len() + pair.rejected.len();
            batch_tokens <= BATCH_TOKENS
        });
        let (batch, later) = rest.split_at(fitting.count().max(1));
        let texts: Vec<&[u32]> =
            batch.iter().flat_map(|pair| [pair.chosen.as_slice(), &pair.rejected]).collect();
        tokens += texts.iter().map(|text| text.len()).sum::<usize>();
        let packing = Packing::shared(&texts).context("an empty text")?;
        let ops = model.ops();
        values.extend(ops.enter(|| ops.read(&model.pooled(&packing)?))?);
        bar.inc(batch.len() as u64);
        bar.set_message(format!("{:.0} tokens/s", tokens as f64 / begun.elapsed().as_secs_f64()));
        rest = later;
    }
    bar.finish_and_clear();
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("features of {} pairs, {tokens} tokens, in {seconds:.1} s", pairs.len());
    Ok(values)
}
