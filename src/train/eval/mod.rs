//! A checkpoint on data: held-out pairs, a baseline, answers.

mod baseline;
mod held_out;
mod scoring;
mod side_by_side;

pub use baseline::{BaselineSettings, make_baseline, open_with_latents};
pub use held_out::EvaluationSettings;
pub(crate) use scoring::Scoring;
pub use side_by_side::side_by_side;
