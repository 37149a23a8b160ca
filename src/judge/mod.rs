//! `trainer judge`: a language model's verdicts on answers, as the paper has GPT-4's (InfoRM, NeurIPS 2024, sections 4.2
//! and 5.1): which of two answers is better, and which answers are over-optimised.
//!
//! Both commands make questions (`over_optimisation/`, `compare/`) and have them answered (`session/`) by something that
//! answers (`Judge`): a server (`endpoint/`), or a model on this machine (`local.rs`).

mod compare;
mod endpoint;
mod local;
mod over_optimisation;
mod session;
mod statistics;

pub use compare::{Compare, CompareReport, Positions, WinRate};
pub use endpoint::{Endpoint, EndpointSettings, ResponseFormat};
pub use local::LocalJudge;
pub use over_optimisation::{
    AnswerStatistics, OverOptimisation, OverOptimisationReport, RewardModelReport, StatisticReport,
};
pub use session::{
    AnswerSchema, AskError, AskPolicy, Judge, Question, Unjudged, UnjudgedAnswer, UnjudgedAnswers,
    UnjudgedReason, VERDICTS_FILE,
};
pub use statistics::{Agreement, Auc, Share, auc};
