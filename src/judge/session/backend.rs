//! Who is asked.

use std::time::Duration;

use super::failure::Unjudged;
use super::question::Question;

/// Something that answers questions with text: a server, or a model on this machine.
pub trait Judge: Sync {
    /// What it is called in reports. Verdicts of judges with different names are kept apart.
    fn name(&self) -> &str;

    /// The text of its answer, which the caller reads. Answers to the same question may differ between seeds.
    ///
    /// # Errors
    /// See [`AskError`].
    fn ask(&self, question: &Question, seed: u64) -> Result<String, AskError>;
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskError {
    /// No question would be answered: the run stops.
    Fatal(String),
    /// The same question may be answered after some time.
    Later {
        /// What it counts as in the end.
        unjudged: Unjudged,
        /// Time that whoever answers asks to be left alone, at least.
        after: Option<Duration>,
    },
    /// There was an answer, which is of no use; another seed may give another.
    Again(Unjudged),
    /// This question will not be answered.
    Never(Unjudged),
}
