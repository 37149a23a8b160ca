//! What a run that was interrupted goes on from, and its log.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::optimiser::{AdamW, ParameterState};
use super::plots;
use super::record::EpochMeans;
use super::tensorboard::Events;

/// Appended to the output folder's name.
const SUFFIX: &str = ".progress";
const STATE_FILE: &str = "state.safetensors";
const LOG_FILE: &str = "log.jsonl";
/// Key of the state in the file's metadata.
const STATE_KEY: &str = "state";
/// Kinds of tensors in the file, before the parameter's number.
const VALUES: &str = "values";
const FIRST: &str = "first";
const SECOND: &str = "second";
const BEST: &str = "best";

/// Where a run is, besides its tensors. All random numbers follow from the seed and the step.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(in crate::train) struct State {
    /// Steps taken.
    pub(in crate::train) steps: usize,
    /// Means over the epoch so far.
    pub(in crate::train) epoch: EpochMeans,
    /// Means over the epochs that are complete.
    pub(in crate::train) epochs: Vec<EpochMeans>,
    /// The best evaluation so far.
    pub(in crate::train) best: Option<Best>,
}

/// An evaluation whose weights are kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(in crate::train) struct Best {
    pub(in crate::train) step: usize,
    pub(in crate::train) accuracy: f64,
}

#[derive(Serialize, Deserialize)]
struct StoredState {
    /// Of the settings, the data and the start: a state goes with no other.
    fingerprint: String,
    state: State,
}

/// The folder beside the output in which a run keeps its log and its state.
#[derive(Debug)]
pub(in crate::train) struct Progress {
    folder: PathBuf,
    /// Of the output folder.
    name: String,
    fingerprint: String,
    log: File,
    events: Option<Events>,
    best: Option<Vec<Vec<f32>>>,
}

impl Progress {
    /// Of a run to `output`.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(in crate::train) fn open(output: &Path, fingerprint: String) -> anyhow::Result<Self> {
        let name = output.file_name().context("output: expected a folder's name")?;
        let mut suffixed = name.to_owned();
        suffixed.push(SUFFIX);
        let folder = output.with_file_name(suffixed);
        let name = name.to_string_lossy().into_owned();
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let file = folder.join(LOG_FILE);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&file)
            .with_context(|| file.display().to_string())?;
        Ok(Self { folder, name, fingerprint, log, events: None, best: None })
    }

    /// Puts back the parameters and moments that an interrupted run left, and says where it was; the log ends there.
    ///
    /// # Errors
    /// A state of other settings or data, or a damaged one.
    pub(in crate::train) fn resume(
        &mut self,
        optimiser: &mut AdamW,
    ) -> anyhow::Result<Option<State>> {
        let file = self.folder.join(STATE_FILE);
        if !file.exists() {
            self.cut_log(0)?;
            return Ok(None);
        }
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        let damaged = || format!("{}: damaged; delete it to begin anew", file.display());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).with_context(damaged)?;
        let stored = metadata.metadata().as_ref().and_then(|keys| keys.get(STATE_KEY));
        let StoredState { fingerprint, state } =
            serde_json::from_str(stored.with_context(damaged)?).with_context(damaged)?;
        anyhow::ensure!(
            fingerprint == self.fingerprint,
            "{}: of a run with other settings, data or start; delete it to begin anew",
            file.display()
        );
        let tensors = SafeTensors::deserialize(&bytes).with_context(damaged)?;
        let values = |kind: &str, index: usize, count: usize| -> anyhow::Result<Vec<f32>> {
            let tensor = tensors.tensor(&format!("{kind}.{index}")).with_context(damaged)?;
            let (values, _) = tensor.data().as_chunks::<4>();
            anyhow::ensure!(tensor.dtype() == Dtype::F32 && values.len() == count, damaged());
            Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
        };
        let counts = optimiser.counts();
        let mut states = Vec::with_capacity(counts.len());
        for (index, &count) in counts.iter().enumerate() {
            let of = |kind| values(kind, index, count);
            let (first, second) = (of(FIRST)?, of(SECOND)?);
            states.push(ParameterState { values: of(VALUES)?, first, second });
        }
        optimiser.restore(state.steps, states)?;
        if state.best.is_some() {
            let best = counts.iter().enumerate();
            let best = best.map(|(index, &count)| values(BEST, index, count));
            self.best = Some(best.collect::<anyhow::Result<_>>()?);
        }
        self.cut_log(state.steps)?;
        Ok(Some(state))
    }

    /// Writes where the run is, in one step: a run that is killed meanwhile leaves the state before.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(in crate::train) fn save(&self, state: &State, optimiser: &AdamW) -> anyhow::Result<()> {
        let stored = StoredState { fingerprint: self.fingerprint.clone(), state: state.clone() };
        let metadata = HashMap::from([(STATE_KEY.to_owned(), serde_json::to_string(&stored)?)]);
        let mut tensors: Vec<(String, Vec<u8>)> = Vec::new();
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        for (index, state) in optimiser.state()?.into_iter().enumerate() {
            let ParameterState { values, first, second } = state;
            tensors.push((format!("{VALUES}.{index}"), bytes(&values)));
            tensors.push((format!("{FIRST}.{index}"), bytes(&first)));
            tensors.push((format!("{SECOND}.{index}"), bytes(&second)));
        }
        for (index, values) in self.best.iter().flatten().enumerate() {
            tensors.push((format!("{BEST}.{index}"), bytes(values)));
        }
        let views = tensors
            .iter()
            .map(|(name, bytes)| {
                Ok((name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        let named = || self.folder.display().to_string();
        let staged = tempfile::NamedTempFile::new_in(&self.folder).with_context(named)?;
        safetensors::serialize_to_file(views, Some(metadata), staged.path()).with_context(named)?;
        // The file's bytes before its name: also a machine that loses power has the one state or the other.
        File::open(staged.path()).and_then(|file| file.sync_all()).with_context(named)?;
        staged.persist(self.folder.join(STATE_FILE)).with_context(named)?;
        Ok(())
    }

    /// Adds a line to the log.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(in crate::train) fn log(&mut self, record: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        // What the log says to the digit, as after a resumption.
        let record: Value = serde_json::from_slice(&line)?;
        line.push(b'\n');
        self.log.write_all(&line).with_context(|| self.folder.display().to_string())?;
        self.events.as_mut().map_or(Ok(()), |events| events.append(&record))
    }

    /// Keeps the parameters as they are now.
    ///
    /// # Errors
    /// A failing tensor operation.
    pub(in crate::train) fn keep_best(&mut self, optimiser: &AdamW) -> anyhow::Result<()> {
        self.best = Some(optimiser.values()?);
        Ok(())
    }

    /// Puts the parameters back that were kept.
    ///
    /// # Errors
    /// A failing tensor operation.
    pub(in crate::train) fn put_best_back(&mut self, optimiser: &AdamW) -> anyhow::Result<()> {
        self.best.take().map_or(Ok(()), |best| optimiser.set_values(best))
    }

    /// For the finished checkpoint, the log as it is, as TensorBoard's events and as plots: names and bytes.
    ///
    /// # Errors
    /// A file that cannot be read, or a plot that cannot be drawn.
    pub(in crate::train) fn finished(&self) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let (bytes, records) = read_log(&self.folder.join(LOG_FILE), usize::MAX)?;
        let mut files = plots::draw(&self.name, &records)?;
        files.push((LOG_FILE.to_owned(), bytes));
        if let Some(events) = &self.events {
            files.push(events.finished()?);
        }
        Ok(files)
    }

    /// Removes the folder: the checkpoint is there.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub(in crate::train) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| self.folder.display().to_string())
    }

    /// Leaves the log's lines of the first `steps` steps, and begins the events with these.
    fn cut_log(&mut self, steps: usize) -> anyhow::Result<()> {
        let file = self.folder.join(LOG_FILE);
        let named = || file.display().to_string();
        let (kept, records) = read_log(&file, steps)?;
        let mut staged = tempfile::NamedTempFile::new_in(&self.folder).with_context(named)?;
        staged.write_all(&kept).with_context(named)?;
        staged.persist(&file).with_context(named)?;
        self.log = OpenOptions::new().append(true).open(&file).with_context(named)?;
        self.events = Some(Events::begin(&self.folder, &records)?);
        Ok(())
    }
}

/// The lines of the first `steps` steps, as bytes and as records.
fn read_log(file: &Path, steps: usize) -> anyhow::Result<(Vec<u8>, Vec<Value>)> {
    let named = || file.display().to_string();
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    for line in BufReader::new(File::open(file).with_context(named)?).lines() {
        let line = line.with_context(named)?;
        // The last line may be half a line.
        let Ok(record) = serde_json::from_str::<Value>(&line) else { break };
        let step = record["step"].as_u64().unwrap_or(u64::MAX) as usize;
        // An evaluation is counted by the steps before it.
        let is_kept = if record.get("evaluation").is_some() { step <= steps } else { step < steps };
        if is_kept {
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
            records.push(record);
        }
    }
    Ok((bytes, records))
}

impl Drop for Progress {
    /// Without a state there is nothing to go on from.
    fn drop(&mut self) {
        if !self.folder.join(STATE_FILE).exists() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
