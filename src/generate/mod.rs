//! Language models that write: answers of a policy, and verdicts of a judge. The model runs in mistral.rs, behind the
//! feature `mistralrs`; texts become token ids, and token ids texts, as everywhere here.

#[cfg(not(feature = "mistralrs"))]
mod absent;
mod call;
#[cfg(feature = "mistralrs")]
mod mistral;

#[cfg(not(feature = "mistralrs"))]
pub use absent::Generator;
pub use call::{Finish, Generated, GeneratorSettings, Sampling};
#[cfg(feature = "mistralrs")]
pub use mistral::Generator;
