//! What a checkpoint says of the samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rayon::prelude::*;

use super::BestOfN;
use super::samples::Response;
use crate::checkpoint::{Checkpoint, Input};
use crate::model::Score;
use crate::monitor::{
    BaselineAnswers, BaselineOrigin, BaselineSet, MonitorConfig, Sample, Subject, Watched,
};
use crate::train::baseline::{read_answer, reason};
use crate::train::config::FeatureConfig;
use crate::train::data::{BadLines, Origin, read_rows};
use crate::train::evaluate::Judge;
use crate::train::features::Depth;

/// A text to score, and what errors call it.
struct Text<'a> {
    input: &'a Input,
    origin: &'a Origin,
    called: String,
}

/// What a checkpoint says of the samples, prompt by prompt.
pub(super) struct Scores {
    pub(super) rewards: Vec<Vec<f64>>,
    /// As the monitor takes them; `None` for a head without latents.
    pub(super) samples: Option<Vec<Vec<Sample>>>,
}

/// A checkpoint that scores.
pub(super) struct Scoring<'a> {
    checkpoint: &'a Checkpoint,
    judge: Judge,
}

impl<'a> Scoring<'a> {
    pub(super) fn load(checkpoint: &'a Checkpoint, settings: &BestOfN<'_>) -> anyhow::Result<Self> {
        let features = FeatureConfig { folder: None, dtype: settings.dtype };
        let judge = Judge::load(checkpoint, &features, Depth::Pooled, settings.threads)
            .with_context(|| checkpoint.folder.display().to_string())?;
        Ok(Self { checkpoint, judge })
    }

    /// Scores every sample once; those of one prompt lie side by side, so that it is computed once a batch.
    ///
    /// # Errors
    /// A sample that is too long for the model, or whose reward or latent is not finite: names its file and line.
    pub(super) fn samples(&mut self, prompts: &[Vec<Response>]) -> anyhow::Result<Scores> {
        let texts: Vec<Text<'_>> = prompts
            .iter()
            .flatten()
            .map(|response| Text {
                input: &response.input,
                origin: &response.origin,
                called: response.to_string(),
            })
            .collect();
        let scored = self.score(&texts)?;
        let mut rest = scored.into_iter();
        let mut rewards = Vec::with_capacity(prompts.len());
        let mut samples = Vec::with_capacity(prompts.len());
        for responses in prompts {
            let (own, latents): (Vec<f64>, Vec<Option<Sample>>) = rest
                .by_ref()
                .take(responses.len())
                .map(|(score, sample)| (f64::from(score.reward), sample))
                .unzip();
            rewards.push(own);
            samples.push(latents.into_iter().collect::<Option<Vec<Sample>>>());
        }
        Ok(Scores { rewards, samples: samples.into_iter().collect() })
    }

    /// SFT answers of a file as a baseline of this checkpoint.
    ///
    /// # Errors
    /// As [`Scoring::samples`], a line that is no answer, or a number of answers that no baseline has.
    pub(super) fn baseline(
        &mut self,
        file: &Path,
        config: &MonitorConfig,
    ) -> anyhow::Result<BaselineSet> {
        let files = [PathBuf::from(file)];
        let columns = crate::train::answers::COLUMNS;
        let (answers, _) = read_rows(&files, &columns, BadLines::Refuse, read_answer)?;
        let (least, most) = (config.min_window, config.max_window);
        ensure!(
            (least..=most).contains(&answers.len()),
            "{}: {} answers; a baseline has from {least} to {most}",
            file.display(),
            answers.len()
        );
        let texts: Vec<Text<'_>> = answers
            .iter()
            .map(|(input, origin)| Text { input, origin, called: origin.to_string() })
            .collect();
        let mut baseline = BaselineAnswers::default();
        for (_, sample) in self.score(&texts)? {
            baseline.push(&sample.context("a baseline needs latents")?);
        }
        BaselineSet::new(baseline, BaselineOrigin::Uploaded, 0).context("a baseline needs latents")
    }

    fn score(&mut self, texts: &[Text<'_>]) -> anyhow::Result<Vec<(Score, Option<Sample>)>> {
        let name = &self.checkpoint.name;
        let encoder = &self.checkpoint.encoder;
        let encoded = texts
            .par_iter()
            .map(|text| match encoder.encode(text.input, false) {
                Ok(encoding) => Ok(encoding.ids),
                Err(error) => anyhow::bail!("{}: {}, of {name}", text.called, reason(&error)),
            })
            .collect::<anyhow::Result<Vec<Vec<u32>>>>()?;
        let ids: Vec<&[u32]> = encoded.iter().map(Vec::as_slice).collect();
        let scores = self.judge.scores(&ids)?;
        let of = |((score, ids), text): ((Score, &&[u32]), &Text<'_>)| {
            ensure!(
                score.values().all(f32::is_finite),
                "{}: the reward or latent that {name} gives is not finite",
                text.called
            );
            let request: Arc<str> = text.origin.file.display().to_string().into();
            let watched = Watched::new(ids, text.origin.line, Subject::of(text.input));
            let latent = score.latent.as_ref();
            let sample = latent.map(|latent| watched.scored(score.reward, latent, request));
            Ok((score, sample))
        };
        scores.into_iter().zip(&ids).zip(texts).map(of).collect()
    }
}
