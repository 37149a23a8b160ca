//! Pairs of answers to the same prompt.

use std::collections::{HashMap, VecDeque};

use anyhow::ensure;
use serde::Serialize;

use crate::judge::session::AnswerPlace;
use crate::judge::session::LabelledAnswer;
use crate::judge::session::shown;
use crate::monitor::prompt_fingerprint;

/// Answers without a counterpart that are named on standard error.
const NAMED: usize = 20;

/// Two answers to one prompt.
pub(super) struct AnswerPair {
    pub(super) answer: LabelledAnswer,
    pub(super) against: LabelledAnswer,
}

/// An answer whose prompt the other file does not have, or has fewer answers to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Unmatched {
    #[serde(flatten)]
    place: AnswerPlace,
    /// The beginning of the prompt's last message.
    prompt: String,
}

/// What two files have in common, and what not.
pub(super) struct Matched {
    pub(super) pairs: Vec<AnswerPair>,
    pub(super) unmatched: Vec<Unmatched>,
}

impl Matched {
    /// Pairs answers whose prompts are the same to the letter; of several answers to a prompt the first with the first, and
    /// so on.
    ///
    /// # Errors
    /// No pair at all.
    pub(super) fn of(
        answers: Vec<LabelledAnswer>,
        against: Vec<LabelledAnswer>,
    ) -> anyhow::Result<Self> {
        let prompt = |answer: &LabelledAnswer| prompt_fingerprint(answer.response.prompt());
        let mut others: HashMap<u64, VecDeque<usize>> = HashMap::new();
        for (index, answer) in against.iter().enumerate() {
            others.entry(prompt(answer)).or_default().push_back(index);
        }
        let mut against: Vec<Option<LabelledAnswer>> = against.into_iter().map(Some).collect();
        let (mut pairs, mut unmatched) = (Vec::new(), Vec::new());
        for answer in answers {
            let other = others.get_mut(&prompt(&answer)).and_then(VecDeque::pop_front);
            match other.and_then(|index| against[index].take()) {
                Some(against) => pairs.push(AnswerPair { answer, against }),
                None => unmatched.push(Unmatched::of(&answer)),
            }
        }
        unmatched.extend(against.iter().flatten().map(Unmatched::of));
        let first = unmatched.first().map_or(String::new(), |first| {
            format!("; the first is {} of {}", first.prompt, first.place)
        });
        ensure!(
            !pairs.is_empty(),
            "--against: the two files have no prompt in common, to the letter{first}"
        );
        Ok(Self { pairs, unmatched })
    }

    /// Names the first of those without a counterpart on standard error.
    pub(super) fn name_unmatched(&self) {
        for Unmatched { place, prompt } in self.unmatched.iter().take(NAMED) {
            eprintln!("only on one side: {place}: {prompt}");
        }
        if let Some(more) = self.unmatched.len().checked_sub(NAMED + 1) {
            eprintln!("only on one side: {} more", more + 1);
        }
    }
}

impl Unmatched {
    fn of(answer: &LabelledAnswer) -> Self {
        let last = answer.response.prompt().last();
        let prompt = shown(last.map_or("", |message| message.content.as_str()));
        Self { place: answer.place(), prompt }
    }
}
