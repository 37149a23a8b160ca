//! Features of a frozen backbone: pooled hidden states, computed once by the inference engine and kept on disk.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::checkpoint::{FolderTensors, ModelConfig};
use crate::model::RewardModel;
use crate::ops::cpu::CpuOps;
use crate::ops::{Ops, Packing};

/// Tokens of a batch; prefixes that texts share are computed once.
const BATCH_TOKENS: usize = 8192;
/// Time between two parts: what a killed run loses at most.
const PART_EVERY: Duration = Duration::from_secs(30);
/// Tensors of a part: a digest of each text's token ids, and its features.
const TEXTS: &str = "texts";
const FEATURES: &str = "features";
const PART_SUFFIX: &str = "safetensors";

/// The first half of a text's SHA-256, over its token ids.
type TextDigest = [u8; 16];

/// Hidden states before the final norm at the last token of texts, each `[hidden]`, of one backbone in one precision.
///
/// On disk, a folder named by backbone and precision, of safetensors files: `texts` `[n, 16]` and `features`
/// `[n, hidden]`. Each file appears in one step, and none is ever changed, so runs that are killed or that
/// share the folder do no harm.
#[derive(Debug)]
pub struct FeatureStore {
    folder: Option<PathBuf>,
    hidden: usize,
    rows: HashMap<TextDigest, usize>,
    values: Vec<f32>,
}

impl FeatureStore {
    /// Features of the backbone in `config` and `tensors` with products as `ops` takes them: those that `folder`
    /// has already; without a folder, none are kept.
    ///
    /// # Errors
    /// A folder or a file in it that cannot be read, or a file that holds something else.
    pub fn open(
        folder: Option<&Path>,
        config: &ModelConfig,
        tensors: &FolderTensors,
        ops: &CpuOps,
    ) -> anyhow::Result<Self> {
        let hidden = config.decoder.hidden_size;
        let folder = folder.map(|folder| folder.join(digest(config, tensors, ops)));
        let mut store = Self { folder, hidden, rows: HashMap::new(), values: Vec::new() };
        let Some(folder) = store.folder.clone() else { return Ok(store) };
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == PART_SUFFIX) {
                store.read(&file)?;
            }
        }
        Ok(store)
    }

    /// The features of a text, if they are there.
    pub fn get(&self, text: &[u32]) -> Option<&[f32]> {
        self.rows.get(&text_digest(text)).map(|&row| self.row(row))
    }

    /// Computes what is missing of `texts`, and returns the number of the row of each.
    ///
    /// # Errors
    /// An empty text, a failing device, or a folder that cannot be written.
    pub fn rows(
        &mut self,
        model: &RewardModel<CpuOps>,
        texts: &[&[u32]],
    ) -> anyhow::Result<Vec<usize>> {
        let mut missing: Vec<&[u32]> =
            texts.iter().copied().filter(|text| self.get(text).is_none()).collect();
        // Neighbours then share the longest prefixes.
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            self.compute(model, &missing)?;
        }
        Ok(texts.iter().map(|text| self.rows[&text_digest(text)]).collect())
    }

    /// Features of a row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.hidden..][..self.hidden]
    }

    fn compute(&mut self, model: &RewardModel<CpuOps>, mut texts: &[&[u32]]) -> anyhow::Result<()> {
        let bar = ProgressBar::new(texts.len() as u64).with_style(ProgressStyle::with_template(
            "features {bar:30} {pos}/{len} texts, {elapsed} + {eta}  {msg}",
        )?);
        let begun = Instant::now();
        let (count, mut tokens) = (texts.len(), 0);
        let (mut part, mut part_begun) = (Vec::new(), Instant::now());
        while !texts.is_empty() {
            let mut batch_tokens = 0;
            let fitting = texts.iter().take_while(|text| {
                batch_tokens += text.len();
                batch_tokens <= BATCH_TOKENS
            });
            let (batch, later) = texts.split_at(fitting.count().max(1));
            tokens += batch.iter().map(|text| text.len()).sum::<usize>();
            let packing = Packing::shared(batch).context("an empty text")?;
            let ops = model.ops();
            let values = ops.enter(|| ops.read(&model.pooled(&packing)?))?;
            part.extend(batch.iter().map(|text| text_digest(text)).zip(self.rows.len()..));
            self.rows.extend(part[part.len() - batch.len()..].iter().copied());
            self.values.extend(values);
            texts = later;
            if texts.is_empty() || part_begun.elapsed() > PART_EVERY {
                self.write(&part)?;
                part.clear();
                part_begun = Instant::now();
            }
            bar.inc(batch.len() as u64);
            bar.set_message(format!(
                "{:.0} tokens/s",
                tokens as f64 / begun.elapsed().as_secs_f64()
            ));
        }
        bar.finish_and_clear();
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("features of {count} texts, {tokens} tokens, in {seconds:.1} s");
        Ok(())
    }

    fn read(&mut self, file: &Path) -> anyhow::Result<()> {
        let damaged =
            || format!("{}: not a part of this backbone's features: delete it", file.display());
        let bytes = fs::read(file).with_context(|| file.display().to_string())?;
        let tensors = SafeTensors::deserialize(&bytes).with_context(damaged)?;
        let (texts, features) = (
            tensors.tensor(TEXTS).with_context(damaged)?,
            tensors.tensor(FEATURES).with_context(damaged)?,
        );
        let (texts, rest) = texts.data().as_chunks::<16>();
        let is_right = rest.is_empty()
            && features.dtype() == Dtype::F32
            && features.shape() == [texts.len(), self.hidden];
        anyhow::ensure!(is_right, damaged());
        let (features, _) = features.data().as_chunks::<4>();
        for (text, row) in texts.iter().zip(features.chunks_exact(self.hidden)) {
            let next = self.rows.len();
            self.rows.entry(*text).or_insert_with(|| {
                self.values.extend(row.iter().map(|&bytes| f32::from_le_bytes(bytes)));
                next
            });
        }
        Ok(())
    }

    /// Writes a part, named by its content.
    fn write(&self, part: &[(TextDigest, usize)]) -> anyhow::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let named = || folder.display().to_string();
        let texts: Vec<u8> = part.iter().flat_map(|(text, _)| *text).collect();
        let features: Vec<u8> = part
            .iter()
            .flat_map(|&(_, row)| self.row(row))
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let bytes = safetensors::serialize(
            [
                (TEXTS, TensorView::new(Dtype::U8, vec![part.len(), 16], &texts)?),
                (FEATURES, TensorView::new(Dtype::F32, vec![part.len(), self.hidden], &features)?),
            ],
            None,
        )?;
        let staged = tempfile::NamedTempFile::new_in(folder).with_context(named)?;
        fs::write(staged.path(), bytes).with_context(named)?;
        let name = hex(&Sha256::digest(&texts)[..16]);
        staged.persist(folder.join(format!("{name}.{PART_SUFFIX}"))).with_context(named)?;
        Ok(())
    }
}

/// Names what features depend on besides the text: the backbone's weights and how products are rounded.
fn digest(config: &ModelConfig, tensors: &FolderTensors, ops: &CpuOps) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&config.decoder).unwrap_or_default());
    hash.update(format!("\n{} {}", ops.isa().name(), ops.precision().name()));
    tensors.for_each(|name, dtype, shape, bytes| {
        // The final norm comes after the features.
        if name.starts_with("model.") && name != "model.norm.weight" {
            hash.update(format!("\n{name} {dtype} {shape:?}\n"));
            hash.update(bytes);
        }
    });
    hex(&hash.finalize()[..16])
}

fn text_digest(ids: &[u32]) -> TextDigest {
    let mut hash = Sha256::new();
    for id in ids {
        hash.update(id.to_le_bytes());
    }
    let mut digest = TextDigest::default();
    digest.copy_from_slice(&hash.finalize()[..16]);
    digest
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
