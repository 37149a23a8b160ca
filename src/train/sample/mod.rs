//! `trainer sample`: a language model answers prompts, several times each. Every sample follows from the seed, the prompt
//! and its number alone; a run that was stopped goes on where it was.

mod output;
mod prompts;
mod record;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::generate::{Finish, Generated, Generator, GeneratorSettings, Sampling};
use crate::train::data::data_files;
use output::{Output, SampleRow};
use prompts::{SamplePrompt, read_prompts};
pub use record::SampleRecord;

/// Which samples are drawn, and where they go.
#[derive(Debug, Clone)]
pub struct SampleSettings<'a> {
    /// The policy.
    pub generator: GeneratorSettings,
    /// Files with prompts.
    pub prompts: &'a [PathBuf],
    /// Samples of each prompt.
    pub samples: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// File to write, JSONL.
    pub output: &'a Path,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleReport {
    /// What samples follow from.
    #[serde(flatten)]
    pub record: SampleRecord,
    /// Different prompts.
    pub prompts: usize,
    /// Samples in the file.
    pub written: usize,
    /// Those of them that an earlier run had drawn.
    pub resumed: usize,
    /// Tokens of all samples.
    pub tokens: usize,
    /// Samples that have as many tokens as were allowed.
    pub cut: usize,
}

/// Answers prompts, and writes a line for each sample, in the order of the prompts. What is drawn is kept beside the
/// output until all of it is there.
///
/// # Errors
/// A model that cannot be loaded or fails, a line that is no prompt or one too long for the model (names file and line), an
/// output that is there already, or was begun with other settings.
pub fn sample(settings: &SampleSettings<'_>) -> anyhow::Result<SampleReport> {
    let SampleSettings { generator, prompts: files, samples, sampling, output } = settings;
    ensure!(*samples > 0, "--samples: must be at least 1");
    ensure!(sampling.max_new_tokens > 0, "--max-new-tokens: must be at least 1");
    ensure!(
        sampling.temperature >= 0.0 && sampling.temperature.is_finite(),
        "--temperature: must be 0 or more"
    );
    ensure!((0.0..=1.0).contains(&sampling.top_p), "--top-p: must be from 0 to 1");
    ensure!(!output.exists(), "{}: is there already", output.display());
    let (prompts, left_out) = read_prompts(files)?;
    crate::train::data::name_left_out(&left_out);
    let quantise = generator.quantise.clone();
    let model = Generator::load(generator)?;
    let record = SampleRecord {
        model: model.name().to_owned(),
        weights: model.weights().to_owned(),
        quantise,
        device: model.device().to_owned(),
        data: data_files(files)?,
        samples: *samples,
        sampling: *sampling,
    };
    // All prompts are read before the first is answered: what is wrong with the last should not take hours to be known.
    let encode =
        |prompt: &SamplePrompt| model.encode(&prompt.messages).context(prompt.origin.to_string());
    let encoded = prompts.iter().map(encode).collect::<anyhow::Result<Vec<_>>>()?;

    let (kept, drawn) = Output::open(output, &record)?;
    let count = prompts.len() * samples;
    let mut rows: Vec<Option<SampleRow>> = vec![None; count];
    let mut resumed = 0;
    for row in drawn {
        let place = row.prompt_number.checked_mul(*samples).map(|first| first + row.sample);
        let slot = place.filter(|_| row.sample < *samples).and_then(|place| rows.get_mut(place));
        let slot =
            slot.with_context(|| format!("{}: a sample of no prompt", kept.path().display()))?;
        resumed += usize::from(slot.is_none());
        *slot = Some(row);
    }
    eprintln!("{} prompts, {samples} samples each; {resumed} are there already", prompts.len());
    let bar = ProgressBar::new(count as u64).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} samples, {elapsed} + {eta}  {msg}",
    )?);
    bar.set_position(resumed as u64);
    let missing: Vec<usize> = (0..count).filter(|&place| rows[place].is_none()).collect();
    let (next, tokens) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let written = Mutex::new((kept, &mut rows));
    // As many threads as the model writes texts at once: each takes the next one that is missing.
    let work = || -> anyhow::Result<()> {
        while let Some(&place) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (prompt, sample) = (place / samples, place % samples);
            let drawn = model.generate(&encoded[prompt], sampling, sample as u64, None);
            let Generated { text, tokens: ids, finish } = match drawn {
                Ok(drawn) => drawn,
                Err(error) => {
                    // The others stop, too.
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err(error.context(prompts[prompt].origin.to_string()));
                }
            };
            let row = SampleRow {
                prompt_number: prompt,
                sample,
                response: text,
                tokens: ids.len(),
                finish,
            };
            let mut written = written.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            written.0.append(&row)?;
            written.1[place] = Some(row);
            let total = tokens.fetch_add(ids.len(), Ordering::Relaxed) + ids.len();
            bar.set_message(format!("{:.0} tokens/s", total as f64 / bar.elapsed().as_secs_f64()));
            bar.inc(1);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..model.sequences()).map(|_| scope.spawn(work)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, anyhow::Result<()>>| {
            let panicked = || anyhow::anyhow!("a thread that draws samples panicked");
            thread.join().unwrap_or_else(|_| Err(panicked()))
        };
        // All are waited for, whichever fails.
        let ended: Vec<_> = threads.into_iter().map(join).collect();
        ended.into_iter().collect::<anyhow::Result<()>>()
    })?;
    bar.finish();
    let (kept, _) = written.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let rows: Vec<SampleRow> = rows.into_iter().flatten().collect();
    ensure!(rows.len() == count, "{} samples of {count} were drawn", rows.len());
    kept.finish(&rows, &prompts, &record)?;
    Ok(SampleReport {
        record,
        prompts: prompts.len(),
        written: count,
        resumed,
        tokens: rows.iter().map(|row| row.tokens).sum(),
        cut: rows.iter().filter(|row| row.finish == Finish::Length).count(),
    })
}
