//! Scored answers, and the baselines that windows are compared with.

mod baseline;
mod sample;

pub use baseline::{BaselineAnswers, BaselineOrigin, BaselineSet};
pub use sample::{
    Observation, Origin, Role, Sample, Subject, Watched, fingerprint, prompt_fingerprint,
};
