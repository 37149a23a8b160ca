//! `trainer judge`: a language model's verdicts on answers, as the paper has GPT-4's (InfoRM, NeurIPS 2024, sections 4.2
//! and 5.1): which of two answers is better, and which answers are over-optimised.
//!
//! Both commands make questions (`over_optimisation/`, `compare/`) and have them answered (`run.rs`) by something that
//! answers (`Judge`): a server (`endpoint/`), or a model on this machine (`local.rs`).

mod answers;
mod compare;
mod endpoint;
mod local;
mod over_optimisation;
mod persistence;
mod question;
mod reading;
mod report;
mod run;
mod statistics;
mod unjudged;
mod verdicts;

use std::time::Duration;

pub use compare::{Compare, CompareReport, Positions, WinRate};
pub use endpoint::{Endpoint, EndpointSettings, ResponseFormat};
pub use local::LocalJudge;
pub use over_optimisation::{
    AnswerStatistics, OverOptimisation, OverOptimisationReport, RewardModelReport, StatisticReport,
};
pub use persistence::Persistence;
pub use question::{AnswerSchema, Question};
pub use report::UnjudgedAnswers;
pub use statistics::{Agreement, Auc, Share, auc};
pub use unjudged::{Unjudged, UnjudgedAnswer, UnjudgedReason};
pub use verdicts::VERDICTS_FILE;

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
