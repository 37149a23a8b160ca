//! A run: all questions asked once, several at a time.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::backend::Judge;
use super::failure::Unjudged;
use super::failure::UnjudgedAnswer;
use super::parse::Verdict;
use super::place::AnswerPlace;
use super::question::Question;
use super::retry::AskPolicy;
use super::retry::Interruption;
use super::retry::QuestionOutcome;
use super::retry::Stop;
use super::retry::ask;
use super::verdicts::VERDICTS_FILE;
use super::verdicts::VerdictFile;

/// Unjudged answers that are named on standard error.
const NAMED: usize = 20;

/// A question, and what it is about.
pub(in crate::judge) struct PlacedQuestion {
    pub(in crate::judge) place: AnswerPlace,
    pub(in crate::judge) question: Question,
}

/// Who is asked, and how.
pub(in crate::judge) struct JudgeRun<'a> {
    pub(in crate::judge) judge: &'a dyn Judge,
    /// Version of the guidelines that the questions have.
    pub(in crate::judge) guidelines: &'a str,
    pub(in crate::judge) policy: AskPolicy,
    /// Folder of the verdicts that are there, and of those to come.
    pub(in crate::judge) output: Option<&'a Path>,
}

/// A question that is to be asked, and what its verdict is kept under.
struct OpenQuestion<'a> {
    key: &'a str,
    asked: &'a PlacedQuestion,
}

impl JudgeRun<'_> {
    /// What came of each question, in their order. Equal questions are asked once, and those whose verdict is kept are not
    /// asked at all.
    ///
    /// # Errors
    /// What the server said where it would say so to every question, verdicts that cannot be read or written, or no
    /// verdict at all. What was judged until then is kept.
    pub(in crate::judge) fn verdicts<T: Verdict + Serialize + Clone + Send>(
        &self,
        asked: &[PlacedQuestion],
    ) -> anyhow::Result<Vec<Result<T, Unjudged>>> {
        let AskPolicy { concurrency, attempts } = self.policy;
        ensure!(concurrency > 0, "--concurrency: must be at least 1");
        ensure!(attempts > 0, "--attempts: must be at least 1");
        let keys: Vec<String> = asked
            .iter()
            .map(|asked| asked.question.key(self.judge.name(), self.guidelines))
            .collect();
        let wanted: HashSet<&str> = keys.iter().map(String::as_str).collect();
        let (mut file, kept) = match self.output {
            None => (None, HashMap::new()),
            Some(folder) => {
                let (file, kept) = VerdictFile::open::<T>(folder, &wanted)?;
                (Some(file), kept)
            }
        };
        if !kept.is_empty() {
            eprintln!("{} verdicts were there already", kept.len());
        }
        let mut taken = HashSet::new();
        let open: Vec<OpenQuestion<'_>> = keys
            .iter()
            .zip(asked)
            .filter(|(key, _)| !kept.contains_key(*key) && taken.insert(*key))
            .map(|(key, asked)| OpenQuestion { key, asked })
            .collect();
        let mut found: HashMap<&str, Result<T, Unjudged>> = HashMap::new();
        for key in &keys {
            if let Some(verdict) = kept.get(key) {
                found.insert(key, Ok(verdict.clone()));
            }
        }
        self.ask_all(&open, |OpenQuestion { key, asked }, outcome: QuestionOutcome<T>| {
            if let Some(file) = &mut file {
                file.append(key, &asked.place, (self.judge.name(), self.guidelines), &outcome)?;
            }
            found.insert(key, outcome.verdict);
            Ok(())
        })?;
        let verdicts: Vec<Result<T, Unjudged>> =
            keys.iter().filter_map(|key| found.get(key.as_str()).cloned()).collect();
        let unjudged = failures(asked, &verdicts);
        for one in unjudged.iter().take(NAMED) {
            eprintln!("unjudged: {one}");
        }
        if let Some(more) = unjudged.len().checked_sub(NAMED + 1) {
            eprintln!("unjudged: {} more", more + 1);
        }
        if let Some(first) = unjudged.first().filter(|_| unjudged.len() == asked.len()) {
            bail!("none of {} questions has a verdict; the first: {first}", asked.len());
        }
        Ok(verdicts)
    }

    /// Asks several questions at a time, and has what came of each dealt with on this thread.
    fn ask_all<'a, T: Verdict + Send>(
        &self,
        open: &[OpenQuestion<'a>],
        mut done: impl FnMut(&OpenQuestion<'a>, QuestionOutcome<T>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let bar = ProgressBar::new(open.len() as u64).with_style(ProgressStyle::with_template(
            "judging {bar:30} {pos}/{len} questions, {elapsed} + {eta}",
        )?);
        let (next, stop) = (AtomicUsize::new(0), Stop::default());
        let (sender, receiver) = channel();
        let worker = |sender: std::sync::mpsc::Sender<_>| {
            while let Some((index, open)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                open.get(index).map(|open| (index, open))
            } {
                let question = &open.asked.question;
                let answer = ask::<T>(self.judge, question, open.key, self.policy, &stop);
                let ends = answer.is_err();
                if sender.send((index, answer)).is_err() || ends {
                    return;
                }
            }
        };
        let result = std::thread::scope(|scope| {
            for _ in 0..self.policy.concurrency.min(open.len()) {
                let sender = sender.clone();
                let worker = &worker;
                std::thread::Builder::new()
                    .name("judge".to_owned())
                    .spawn_scoped(scope, move || worker(sender))
                    .inspect_err(|_| stop.set())
                    .context("no thread for a question")?;
            }
            drop(sender);
            let mut result = Ok(());
            // Questions under way when one stops the run are still waited for: what comes of them is kept.
            for (index, answer) in receiver {
                let error = match answer {
                    Ok(outcome) => done(&open[index], outcome).err(),
                    Err(Interruption::Stopped) => None,
                    Err(Interruption::Fatal(message)) => {
                        Some(self.stopped(&open[index].asked.place, &message))
                    }
                };
                if let Some(error) = error {
                    stop.set();
                    result = result.and(Err(error));
                }
                bar.inc(1);
            }
            result
        });
        bar.finish_and_clear();
        result
    }

    fn stopped(&self, place: &AnswerPlace, message: &str) -> anyhow::Error {
        let kept = self.output.map_or(String::new(), |folder| {
            let file = folder.join(VERDICTS_FILE);
            format!("; the verdicts so far are in {}, and the same command goes on", file.display())
        });
        anyhow::anyhow!("{place}: {message}{kept}")
    }
}

/// The questions without a verdict.
pub(in crate::judge) fn failures<T>(
    asked: &[PlacedQuestion],
    verdicts: &[Result<T, Unjudged>],
) -> Vec<UnjudgedAnswer> {
    let each = asked.iter().zip(verdicts);
    each.filter_map(|(asked, verdict)| {
        let unjudged = verdict.as_ref().err()?.clone();
        Some(UnjudgedAnswer { place: asked.place.clone(), unjudged })
    })
    .collect()
}
