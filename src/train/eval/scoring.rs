//! What a checkpoint says of answers: rewards, and samples as the monitor takes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rayon::prelude::*;

use super::baseline::{read_answer, reason};
use crate::checkpoint::{Checkpoint, Input};
use crate::model::Score;
use crate::monitor::{
    BaselineAnswers, BaselineOrigin, BaselineSet, MonitorConfig, Sample, Subject, Watched,
};
use crate::train::accuracy::TextScorer;
use crate::train::data::{BadLines, Origin, Response, answers, read_rows};
use crate::train::features::{Compute, Depth};

/// A text to score, and what errors call it.
struct Text<'a> {
    input: &'a Input,
    origin: &'a Origin,
    called: String,
}

/// A checkpoint that scores.
pub(crate) struct Scoring<'a> {
    checkpoint: &'a Checkpoint,
    scorer: TextScorer,
}

impl<'a> Scoring<'a> {
    /// Loads a checkpoint's model.
    pub(crate) fn load(checkpoint: &'a Checkpoint, compute: &Compute) -> anyhow::Result<Self> {
        let scorer = TextScorer::load(checkpoint, compute, None, Depth::Pooled)
            .with_context(|| checkpoint.folder.display().to_string())?;
        Ok(Self { checkpoint, scorer })
    }

    /// The score of each response, and its sample where the head has latents.
    ///
    /// # Errors
    /// A response that is too long for the model, or whose reward or latent is not finite: names its file and line.
    pub(crate) fn responses<'r>(
        &mut self,
        responses: impl IntoIterator<Item = &'r Response>,
    ) -> anyhow::Result<Vec<(Score, Option<Sample>)>> {
        let texts: Vec<Text<'_>> = responses
            .into_iter()
            .map(|response| Text {
                input: &response.input,
                origin: &response.origin,
                called: response.to_string(),
            })
            .collect();
        self.score(&texts)
    }

    /// What answers are compared with: the SFT answers of `file`, else the checkpoint's own baseline; or why there is
    /// nothing.
    ///
    /// # Errors
    /// As [`Scoring::responses`], a line that is no answer, or a number of answers that no baseline has.
    pub(crate) fn compared_with(
        &mut self,
        file: Option<&Path>,
        config: &MonitorConfig,
    ) -> anyhow::Result<Result<BaselineSet, &'static str>> {
        if self.checkpoint.config.head.latent_dim().is_none() {
            return Ok(Err("a standard reward head has none"));
        }
        if let Some(file) = file {
            return self.baseline(file, config).map(Ok);
        }
        let own = self.checkpoint.baseline.as_ref().and_then(BaselineSet::of_checkpoint);
        Ok(own.ok_or(
            "the checkpoint has no baseline; give --baseline, or make one by `trainer baseline`",
        ))
    }

    /// SFT answers of a file as a baseline of this checkpoint.
    ///
    /// # Errors
    /// As [`Scoring::responses`], a line that is no answer, or a number of answers that no baseline has.
    fn baseline(&mut self, file: &Path, config: &MonitorConfig) -> anyhow::Result<BaselineSet> {
        let files = [PathBuf::from(file)];
        let (answers, _) = read_rows(&files, &answers::COLUMNS, BadLines::Refuse, read_answer)?;
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
        let scores = self.scorer.scores(&ids)?;
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
