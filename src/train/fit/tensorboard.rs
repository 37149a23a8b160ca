//! The log as TensorBoard reads it: an events file of scalars.
//!
//! A file is a sequence of records, each an `Event` (`tensorflow/core/util/event.proto`, a protocol buffer) between its
//! length and checksums (`tensorflow/core/lib/io/record_writer.h`).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::Value;

/// Folder of the events, in the folder of the run and in the checkpoint.
const FOLDER: &str = "tensorboard";
/// How the name of a file begins. The rest is the time, by which TensorBoard sorts files.
const PREFIX: &str = "events.out.tfevents.";
/// Records before the first of the log.
const HEADERS: usize = 2;
/// Tags of scalars, and where a record of the log has their values.
const SCALARS: [(&str, &str); 10] = [
    ("train/loss", "/loss"),
    ("train/preference", "/preference"),
    ("train/kl", "/kl"),
    ("train/accuracy", "/accuracy"),
    ("train/margin", "/margin"),
    ("train/active_dimensions", "/active_dimensions"),
    ("train/learning_rate", "/learning_rate"),
    ("train/gradient_norm", "/gradient_norm"),
    ("held_out/accuracy", "/evaluation/accuracy"),
    ("held_out/margin", "/evaluation/margin_mean"),
];

/// The events file of a run. It has one event for each record of the log.
#[derive(Debug)]
pub(in crate::train) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a file in the folder of a run whose log has these records. Those that an interrupted run wrote keep their
    /// times; its file is removed. A new name, because TensorBoard may be reading the old file.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(in crate::train) fn begin(run: &Path, log: &[Value]) -> anyhow::Result<Self> {
        let folder = run.join(FOLDER);
        let named = || folder.display().to_string();
        fs::create_dir_all(&folder).with_context(named)?;
        let old = files(&folder).with_context(named)?;
        let known = match old.last() {
            Some(newest) => fs::read(newest).with_context(named)?,
            None => Vec::new(),
        };
        let known: Vec<&[u8]> = records(&known).skip(HEADERS).take(log.len()).collect();

        let mut bytes = [record(&version()), record(&session_start())].concat();
        bytes.extend(known.iter().copied().flatten());
        for one in &log[known.len()..] {
            bytes.extend(record(&scalars(one)));
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = folder.join(format!("{PREFIX}{}.{:09}", since.as_secs(), since.subsec_nanos()));
        let mut staged = tempfile::NamedTempFile::new_in(&folder).with_context(named)?;
        staged.write_all(&bytes).with_context(named)?;
        staged.persist(&path).with_context(named)?;
        for old in old.iter().filter(|old| **old != path) {
            fs::remove_file(old).with_context(named)?;
        }
        let file = OpenOptions::new().append(true).open(&path).with_context(named)?;
        Ok(Self { path, file })
    }

    /// Appends a record of the log.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(in crate::train) fn append(&mut self, log: &Value) -> anyhow::Result<()> {
        let named = || self.path.display().to_string();
        self.file.write_all(&record(&scalars(log))).with_context(named)
    }

    /// Its name in a checkpoint, and its bytes.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(in crate::train) fn finished(&self) -> anyhow::Result<(String, Vec<u8>)> {
        let named = || self.path.display().to_string();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        Ok((format!("{FOLDER}/{name}"), fs::read(&self.path).with_context(named)?))
    }
}

/// Events files of a folder, the oldest first.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Bytes of a record around its data: the length and its checksum before it, its own checksum after it.
const BEFORE: usize = 12;
const AFTER: usize = 4;

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts: [&[u8]; 4] =
        [&length, &checksum(&length).to_le_bytes(), data, &checksum(data).to_le_bytes()];
    parts.concat()
}

/// The whole records from the start of a file. What a killed run wrote last may be half of one.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = u64::from_le_bytes(*bytes.first_chunk()?);
        let end = BEFORE.checked_add(length.try_into().ok()?)?;
        let data = bytes.get(BEFORE..end)?;
        let whole = bytes.get(..end.checked_add(AFTER)?).filter(|whole| **whole == record(data))?;
        bytes = &bytes[whole.len()..];
        Some(whole)
    })
}

/// CRC32C, rotated and moved, because checksums of what has checksums in it are weak.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn version() -> Vec<u8> {
    let mut event = event(0);
    bytes_field(&mut event, 3, b"brain.Event:2");
    event
}

/// Says that the run begins here: whoever read an earlier file forgets what it said.
fn session_start() -> Vec<u8> {
    let mut event = event(0);
    bytes_field(&mut event, 7, &[key(1, VARINT), 1]);
    event
}

fn scalars(log: &Value) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, place) in SCALARS {
        let Some(scalar) = log.pointer(place).and_then(Value::as_f64) else { continue };
        let mut value = Vec::new();
        bytes_field(&mut value, 1, tag.as_bytes());
        value.push(key(2, FIXED_32));
        value.extend((scalar as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &value);
    }
    let mut event = event(log["step"].as_u64().unwrap_or_default());
    bytes_field(&mut event, 5, &summary);
    event
}

/// An event's time, now, and its step.
fn event(step: u64) -> Vec<u8> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut event = vec![key(1, FIXED_64)];
    event.extend(since.as_secs_f64().to_le_bytes());
    event.push(key(2, VARINT));
    varint(&mut event, step);
    event
}

/// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const BYTES: u8 = 2;
const FIXED_32: u8 = 5;

fn key(field: u8, wire_type: u8) -> u8 {
    field << 3 | wire_type
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(key(field, BYTES));
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(steps: std::ops::Range<u64>) -> Vec<Value> {
        steps.map(|step| json!({"step": step, "loss": 0.5, "pairs": 8})).collect()
    }

    fn read(run: &Path) -> Vec<Vec<u8>> {
        let files = files(&run.join(FOLDER)).unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        records(&fs::read(&files[0]).unwrap()).map(<[u8]>::to_vec).collect()
    }

    /// TensorBoard itself reads files in `tests/trainer_outputs/run.py`.
    #[test]
    fn a_resumed_run_has_each_event_once_at_its_own_time() {
        let run = tempfile::tempdir().unwrap();
        let run = run.path();
        let mut events = Events::begin(run, &[]).unwrap();
        for record in log(0..9) {
            events.append(&record).unwrap();
        }
        let first = read(run);
        assert_eq!(first.len(), HEADERS + 9);

        // Resumed after 4 steps.
        let mut events = Events::begin(run, &log(0..4)).unwrap();
        let cut = read(run);
        assert_eq!(cut[HEADERS..], first[HEADERS..HEADERS + 4]);
        for record in log(4..6) {
            events.append(&record).unwrap();
        }
        assert_eq!(read(run).len(), HEADERS + 6);

        // Killed within a record, whose step is in the log; and once damaged.
        let (name, bytes) = events.finished().unwrap();
        for damaged in [&bytes[..bytes.len() - 5], &[&bytes[..bytes.len() - 5], &[0; 5]].concat()] {
            fs::write(run.join(&name), damaged).unwrap();
            let file = Events::begin(run, &log(0..6)).unwrap().finished().unwrap().0;
            let again = read(run);
            assert_eq!(again.len(), HEADERS + 6);
            let whole: Vec<&[u8]> = records(&bytes).collect();
            assert_eq!(again[HEADERS..HEADERS + 5], whole[HEADERS..HEADERS + 5]);
            fs::rename(run.join(file), run.join(&name)).unwrap();
        }
    }
}
