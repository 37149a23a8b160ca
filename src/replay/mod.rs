//! `trainer monitor-replay`: what the monitor would have said of a run, from a file of its answers.
//!
//! Nothing is computed here: answers go through the engine and the monitor that serve, with the same
//! settings. What is different is where they come from, and that nothing is dropped or forgotten.

mod answers;
mod report;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::config::ServerConfig;
use crate::engine::{Engine, Job, ScoreCache};
use crate::metrics::Metrics;
use crate::model_loader::ServedModel;
use crate::monitor::{Monitor, MonitorError, Observation, Role, SampleOrigin, Subject};
use crate::placement::Devices;
use answers::{AnswerContent, AnswerFile, ReplayedAnswer};
pub use report::Replayed;

/// Answers that are scored at a time.
const REQUEST: usize = 256;
/// Nobody waits offline.
const DEADLINE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A replay, before it is run.
#[derive(Debug)]
pub struct Replay<'a> {
    /// The server's settings.
    pub config: ServerConfig,
    /// Checkpoint that scores texts and has a baseline.
    pub model: Option<&'a Path>,
    /// SFT answers instead of the checkpoint's baseline.
    pub baseline: Option<&'a Path>,
}

/// What scores and what watches.
struct Stage {
    monitor: Monitor,
    engine: Option<(Engine, ServedModel)>,
    runtime: tokio::runtime::Runtime,
    skipped: Vec<String>,
}

impl Replay<'_> {
    /// Replays a file.
    ///
    /// # Errors
    /// A file or line that cannot be read, texts without a checkpoint, latents of different dimensions,
    /// too few baseline answers.
    pub fn run(self, file: &Path) -> anyhow::Result<Replayed> {
        let answers = AnswerFile::read(file)?;
        let baseline = self.baseline.map(AnswerFile::read).transpose()?;
        let mut config = self.config;
        // Offline nothing is too late, and all of it is wanted.
        config.monitor.max_pending = u32::MAX as usize;
        config.monitor.history = u32::MAX as usize;
        // That is the server's.
        config.monitor.journal.path = std::path::PathBuf::new();
        if let Some(baseline) = &baseline {
            let (found, least) = (baseline.answers.len(), config.monitor.min_window);
            let most = config.monitor.max_window;
            ensure!(
                (least..=most).contains(&found),
                "{}: {found} answers; a baseline has from {least} (monitor.min_window) to {most} \
                 (monitor.max_window)",
                baseline.file.display()
            );
        }
        let texts = answers.has_texts() || baseline.as_ref().is_some_and(AnswerFile::has_texts);
        ensure!(
            !texts || self.model.is_some(),
            "{}: texts need a checkpoint to score them: give --model",
            file.display()
        );
        let served = match self.model {
            Some(model) => {
                model.clone_into(&mut config.model);
                Some(ServedModel::open(&config)?)
            }
            None => None,
        };
        let latent_dim = served.as_ref().map(|served| {
            let dimension = served.checkpoint.config.head.latent_dim();
            dimension.context("this checkpoint has a standard reward head: it has no latents")
        });
        let dimensions = [
            latent_dim.transpose()?,
            baseline.as_ref().and_then(AnswerFile::dimension),
            answers.dimension(),
        ];
        let known: Vec<usize> = dimensions.into_iter().flatten().collect();
        ensure!(
            known.windows(2).all(|pair| pair[0] == pair[1]),
            "latents of checkpoint, baseline and answers have different dimensions: {known:?}"
        );

        let metrics = Metrics::new()?;
        let own = served.as_ref().and_then(|served| served.checkpoint.baseline.as_ref());
        let weights = served.as_ref().map_or("", |served| served.weights.as_str());
        let monitor = Monitor::start(config.monitor.clone(), own, weights, metrics.clone())?;
        let engine = match served {
            Some(served) if texts => {
                let devices = Devices::load(&config, &served)?;
                let cache = ScoreCache::new(&served.weights, &config.cache, &metrics);
                let monitor = Some(monitor.clone());
                let engine =
                    Engine::start(devices.scorers, &config.engine, cache, monitor, metrics)?;
                Some((engine, served))
            }
            _ => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut stage = Stage { monitor, engine, runtime, skipped: Vec::new() };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split('.').next().unwrap_or_default();
        if let Some(baseline) = baseline {
            stage.feed(name, Role::Baseline, baseline)?;
        }
        stage.feed(name, Role::Policy, answers)?;
        stage.finish(name)
    }
}

impl Stage {
    /// Shows the monitor answers in their order, scored where they are not.
    fn feed(&mut self, run: &str, role: Role, answers: AnswerFile) -> anyhow::Result<()> {
        let AnswerFile { file, answers } = answers;
        let request: Arc<str> = file.display().to_string().into();
        let mut rest = answers.into_iter().peekable();
        while let Some(first) = rest.next() {
            // A request has one step, and one kind of answers is shown at a time: order is kept.
            let step = first.step;
            let scored = matches!(first.content, AnswerContent::Scored(_));
            let mut together = vec![first];
            while together.len() < REQUEST {
                let same = |answer: &ReplayedAnswer| {
                    answer.step == step
                        && matches!(answer.content, AnswerContent::Scored(_)) == scored
                };
                match rest.next_if(same) {
                    Some(answer) => together.push(answer),
                    None => break,
                }
            }
            let origin = SampleOrigin { run: run.to_owned(), step, role, request: request.clone() };
            self.show(&origin, together)?;
        }
        Ok(())
    }

    fn show(&mut self, origin: &SampleOrigin, answers: Vec<ReplayedAnswer>) -> anyhow::Result<()> {
        let mut samples = Vec::new();
        let mut inputs = Vec::new();
        for ReplayedAnswer { line, content, .. } in answers {
            match content {
                AnswerContent::Scored(sample) => samples.push(*sample),
                AnswerContent::Input(input) => inputs.push((line, input)),
            }
        }
        let shown = Observation::new(origin.clone(), samples);
        self.runtime.block_on(self.monitor.observe(shown));
        let Some((engine, served)) = &self.engine else { return Ok(()) };
        let at = |line: usize| format!("{}, line {line}", origin.request);
        let mut jobs = Vec::with_capacity(inputs.len());
        for (line, input) in inputs {
            match served.checkpoint.encoder.encode(&input, false) {
                Ok(encoding) => jobs.push(Job {
                    ids: encoding.ids,
                    draws: 0,
                    cache: true,
                    index: line,
                    subject: Subject::of(&input),
                }),
                Err(error) => self.skipped.push(format!("{}: {error}", at(line))),
            }
        }
        let lines: Vec<usize> = jobs.iter().map(|job| job.index).collect();
        let deadline = Instant::now() + DEADLINE;
        let answers = self.runtime.block_on(engine.score(jobs, deadline, origin))?;
        for (line, answer) in lines.into_iter().zip(answers) {
            if let Err(error) = answer {
                self.skipped.push(format!("{}: {error}", at(line)));
            }
        }
        Ok(())
    }

    fn finish(self, run: &str) -> anyhow::Result<Replayed> {
        if let Some((engine, _)) = &self.engine {
            engine.join();
        }
        match self.monitor.evaluate(run) {
            Ok(_) | Err(MonitorError::EmptyWindow(_)) => {}
            Err(MonitorError::UnknownRun(_)) => bail!("no answer could be scored"),
            Err(error) => return Err(error.into()),
        }
        let evaluations = self.monitor.evaluations(run, None)?;
        let latest = self.monitor.latest(run)?;
        let run = self.monitor.run(run)?;
        self.monitor.stop();
        Ok(Replayed { evaluations, run, latest, skipped: self.skipped })
    }
}
