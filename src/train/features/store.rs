//! Features of the frozen part of a model, computed once by the inference engine and kept on disk.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::depth::Depth;
use super::inference::Inference;
use crate::checkpoint::{FolderTensors, ModelConfig};
use crate::ops::Packing;

/// Tokens of a batch; prefixes that texts share are computed once.
const BATCH_TOKENS: usize = 8192;
/// Time between two parts, and the numbers that one holds: what a killed run loses at most.
const PART_EVERY: Duration = Duration::from_secs(30);
const PART_VALUES: usize = 1 << 26;
/// Tensors of a part: a digest of each text's token ids, its features, and the rows of each text, where they are not 1.
const TEXTS: &str = "texts";
const FEATURES: &str = "features";
const LENGTHS: &str = "lengths";
const PART_SUFFIX: &str = "safetensors";

/// The first half of a text's SHA-256, over its token ids.
type TextDigest = [u8; 16];

/// Features of texts, `[rows, hidden]` each, of one backbone in one precision.
///
/// On disk, a folder named by backbone, depth and precision, of safetensors files: `texts` `[n, 16]`, `features`
/// `[rows, hidden]`, and `lengths` `[n]` where a text has a row for each token. Each file appears in one step, and
/// none is ever changed, so runs that are killed or that share the folder do no harm. They are mapped, not loaded.
#[derive(Debug)]
pub struct FeatureStore {
    folder: PathBuf,
    /// Where nothing is to be kept.
    _scratch: Option<TempDir>,
    depth: Depth,
    hidden: usize,
    texts: HashMap<TextDigest, usize>,
    places: Vec<Place>,
    parts: Vec<FeaturePart>,
}

/// Where a text's rows are.
#[derive(Debug, Clone, Copy)]
struct Place {
    part: usize,
    first: usize,
    rows: usize,
}

/// A mapped file, and where its features begin.
#[derive(Debug)]
struct FeaturePart {
    map: Mmap,
    start: usize,
    end: usize,
}

impl FeaturePart {
    fn features(&self) -> &[f32] {
        // SAFETY: every bit pattern is an f32.
        let (before, values, _) = unsafe { self.map[self.start..self.end].align_to::<f32>() };
        debug_assert!(before.is_empty());
        values
    }
}

impl FeatureStore {
    /// Features at `depth` of the backbone in `config` and `tensors`, computed by `arithmetic`, which names what the last
    /// digits depend on: those that `folder` has already; without a folder, none are kept.
    ///
    /// # Errors
    /// A folder or a file in it that cannot be read, or a file that holds something else.
    pub fn open(
        folder: Option<&Path>,
        config: &ModelConfig,
        tensors: &FolderTensors,
        arithmetic: &str,
        depth: Depth,
    ) -> anyhow::Result<Self> {
        let hidden = config.decoder.hidden_size;
        let scratch = match folder {
            Some(_) => None,
            None => Some(tempfile::tempdir().context("a temporary folder")?),
        };
        let parent = folder.or(scratch.as_ref().map(TempDir::path)).context("a folder")?;
        let folder = parent.join(digest(config, tensors, arithmetic, depth));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut store = Self {
            folder,
            _scratch: scratch,
            depth,
            hidden,
            texts: HashMap::new(),
            places: Vec::new(),
            parts: Vec::new(),
        };
        let named = || store.folder.display().to_string();
        let mut files = Vec::new();
        for entry in fs::read_dir(&store.folder).with_context(named)? {
            files.push(entry.with_context(named)?.path());
        }
        files.retain(|file| file.extension().is_some_and(|extension| extension == PART_SUFFIX));
        files.sort();
        for file in files {
            store.map(&file)?;
        }
        Ok(store)
    }

    /// Computes what is missing of `texts`, and returns the number of the features of each.
    ///
    /// # Errors
    /// An empty text, a failing device, or a folder that cannot be written.
    pub fn numbers(
        &mut self,
        model: &dyn Inference,
        texts: &[&[u32]],
    ) -> anyhow::Result<Vec<usize>> {
        let digests: Vec<TextDigest> = texts.iter().map(|text| text_digest(text)).collect();
        let missing =
            texts.iter().zip(&digests).filter(|(_, text)| !self.texts.contains_key(*text));
        let mut missing: Vec<&[u32]> = missing.map(|(text, _)| *text).collect();
        // Neighbours then share the longest prefixes.
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            self.compute(model, &missing)?;
        }
        Ok(digests.iter().map(|text| self.texts[text]).collect())
    }

    /// Features `[rows, hidden]` by their number.
    pub fn get(&self, number: usize) -> &[f32] {
        let Place { part, first, rows } = self.places[number];
        &self.parts[part].features()[first * self.hidden..][..rows * self.hidden]
    }

    fn compute(&mut self, model: &dyn Inference, mut texts: &[&[u32]]) -> anyhow::Result<()> {
        let bar = ProgressBar::new(texts.len() as u64).with_style(ProgressStyle::with_template(
            "features {bar:30} {pos}/{len} texts, {elapsed} + {eta}  {msg}",
        )?);
        let begun = Instant::now();
        let (count, mut tokens) = (texts.len(), 0);
        let (mut part, mut part_begun) = (NewPart::default(), Instant::now());
        while !texts.is_empty() {
            let mut batch_tokens = 0;
            let fitting = texts.iter().take_while(|text| {
                batch_tokens += text.len();
                batch_tokens <= BATCH_TOKENS
            });
            let (batch, later) = texts.split_at(fitting.count().max(1));
            tokens += batch.iter().map(|text| text.len()).sum::<usize>();
            let packing = Packing::shared(batch).context("an empty text")?;
            let depth = self.depth;
            let values = model.features(&packing, depth)?;
            for (index, text) in batch.iter().enumerate() {
                let rows = match depth {
                    Depth::Pooled => vec![index],
                    Depth::Entering(_) => packing.rows_of(index),
                };
                part.texts.push((text_digest(text), rows.len()));
                for row in rows {
                    part.values.extend_from_slice(&values[row * self.hidden..][..self.hidden]);
                }
            }
            texts = later;
            let is_full = part.values.len() > PART_VALUES || part_begun.elapsed() > PART_EVERY;
            if texts.is_empty() || is_full {
                self.write(&part)?;
                (part, part_begun) = (NewPart::default(), Instant::now());
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

    fn map(&mut self, file: &Path) -> anyhow::Result<()> {
        let named = || file.display().to_string();
        let damaged =
            || format!("{}: not a part of this backbone's features: delete it", file.display());
        let open = File::open(file).with_context(named)?;
        // SAFETY: the mapping is read-only, and parts are never changed once they have their name.
        let map = unsafe { Mmap::map(&open) }.with_context(named)?;
        let tensors = SafeTensors::deserialize(&map).with_context(damaged)?;
        let of = |name: &str| tensors.tensor(name).with_context(damaged);
        let (texts, features) = (of(TEXTS)?, of(FEATURES)?);
        let (texts, rest) = texts.data().as_chunks::<16>();
        let lengths: Vec<usize> = match self.depth {
            Depth::Pooled => vec![1; texts.len()],
            Depth::Entering(_) => {
                let (lengths, _) = of(LENGTHS)?.data().as_chunks::<4>();
                lengths.iter().map(|&bytes| u32::from_le_bytes(bytes) as usize).collect()
            }
        };
        let rows = lengths.iter().sum::<usize>();
        let start = features.data().as_ptr() as usize - map.as_ptr() as usize;
        let is_right = rest.is_empty()
            && lengths.len() == texts.len()
            && features.dtype() == Dtype::F32
            && features.shape() == [rows, self.hidden]
            && (map.as_ptr() as usize + start).is_multiple_of(align_of::<f32>());
        anyhow::ensure!(is_right, damaged());
        let end = start + features.data().len();
        let mut first = 0;
        for (text, rows) in texts.iter().zip(lengths) {
            let place = Place { part: self.parts.len(), first, rows };
            self.texts.entry(*text).or_insert_with(|| {
                self.places.push(place);
                self.places.len() - 1
            });
            first += rows;
        }
        self.parts.push(FeaturePart { map, start, end });
        Ok(())
    }

    /// Writes a part, named by its content, and maps it.
    fn write(&mut self, part: &NewPart) -> anyhow::Result<()> {
        let named = || self.folder.display().to_string();
        let texts: Vec<u8> = part.texts.iter().flat_map(|(text, _)| *text).collect();
        let lengths: Vec<u8> =
            part.texts.iter().flat_map(|&(_, rows)| (rows as u32).to_le_bytes()).collect();
        let features: Vec<u8> = part.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = part.values.len() / self.hidden;
        let mut views = vec![
            (TEXTS, TensorView::new(Dtype::U8, vec![part.texts.len(), 16], &texts)?),
            (FEATURES, TensorView::new(Dtype::F32, vec![rows, self.hidden], &features)?),
        ];
        if self.depth != Depth::Pooled {
            views.push((LENGTHS, TensorView::new(Dtype::U32, vec![part.texts.len()], &lengths)?));
        }
        let staged = tempfile::NamedTempFile::new_in(&self.folder).with_context(named)?;
        safetensors::serialize_to_file(views, None, staged.path()).with_context(named)?;
        let name = hex(&Sha256::digest(&texts)[..16]);
        let file = self.folder.join(format!("{name}.{PART_SUFFIX}"));
        staged.persist(&file).with_context(named)?;
        self.map(&file)
    }
}

/// What the next part will hold.
#[derive(Debug, Default)]
struct NewPart {
    /// Each text, and its number of rows.
    texts: Vec<(TextDigest, usize)>,
    values: Vec<f32>,
}

/// Puts what [`Depth::Entering`] keeps of each sequence on the rows of a batch: `[rows, hidden]`.
pub(in crate::train) fn entering(
    packing: &Packing,
    features: &[&[f32]],
    hidden: usize,
) -> Vec<f32> {
    let mut values = vec![0.0; packing.rows() * hidden];
    for (sequence, features) in features.iter().enumerate() {
        // Rows that sequences share have the same bits in each of them.
        for (row, state) in packing.rows_of(sequence).into_iter().zip(features.chunks_exact(hidden))
        {
            values[row * hidden..][..hidden].copy_from_slice(state);
        }
    }
    values
}

/// Names what features depend on besides the text: the weights before the cut and how products are rounded.
fn digest(config: &ModelConfig, tensors: &FolderTensors, arithmetic: &str, depth: Depth) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(&config.decoder).unwrap_or_default());
    hash.update(format!("\n{arithmetic}"));
    if let Depth::Entering(layer) = depth {
        hash.update(format!("\nentering {layer}"));
    }
    let prefix = config.decoder.architecture.family.prefix();
    let comes_before = |name: &str| {
        let Some(rest) = name.strip_prefix(prefix) else { return false };
        let layer = rest.strip_prefix("layers.").and_then(|rest| rest.split('.').next());
        match (depth, layer.and_then(|layer| layer.parse::<usize>().ok())) {
            (Depth::Entering(first), Some(layer)) => layer < first,
            (Depth::Pooled, Some(_)) => true,
            // The final norm comes after the features.
            (_, None) => !rest.contains("norm"),
        }
    };
    tensors.for_each(|name, dtype, shape, bytes| {
        if comes_before(name) {
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
