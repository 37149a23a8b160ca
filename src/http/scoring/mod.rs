//! The one scoring call: from a request's body to what becomes of each input.

mod body;
mod caller;
mod inputs;
mod outcome;
mod score;
mod timing;

pub(super) use body::{JsonBody, json_bytes, parse, typed};
pub(super) use caller::{
    Caller, DEFAULT_RUN, MAX_STEP, RunHeaders, RunQuery, check_run, run_of_head,
};
pub(super) use inputs::{MaybeInput, Truncation, check_count, check_not_too_many, encode, inputs};
pub(super) use outcome::Outcome;
pub(super) use score::{ScoringWork, nothing_to_score, score};
pub(super) use timing::Timing;
