//! A session with a judge: questions about answers, asked until each has a verdict or none is to be had.
//!
//! Verdicts are kept on disk as they come (`verdicts.rs`), so that a session that stops goes on where it was.

mod answers;
mod backend;
mod failure;
mod parse;
mod place;
mod question;
mod report;
mod retry;
mod run;
mod verdicts;

pub(super) use answers::{LabelledAnswer, read_answers};
pub use backend::{AskError, Judge};
pub use failure::{Unjudged, UnjudgedAnswer, UnjudgedReason};
pub(super) use parse::{Verdict, shown};
pub(super) use place::{AnswerPlace, Order};
pub use question::{AnswerSchema, Question};
pub(super) use question::{material, transcript};
pub use report::UnjudgedAnswers;
pub(super) use report::write_report;
pub use retry::AskPolicy;
pub(super) use run::{JudgeRun, PlacedQuestion, failures};
pub use verdicts::VERDICTS_FILE;
