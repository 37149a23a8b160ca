//! Scored answers, and the baselines that windows are compared with.

mod baseline;
mod sample;

pub use baseline::{BaselineAnswers, BaselineOrigin, BaselineSet};
pub use sample::{
    Observation, Role, Sample, SampleOrigin, Subject, Watched, fingerprint, prompt_fingerprint,
};
