//! Hidden states from mistral.rs instead of this program's own decoder: for its in-situ quantisation, and models that are
//! spread over several GPUs. The reward head, and all above it, stay this program's.

#[cfg(not(feature = "mistralrs"))]
mod absent;
mod loaded;
#[cfg(feature = "mistralrs")]
mod mistral;

#[cfg(not(feature = "mistralrs"))]
pub use absent::load;
pub use loaded::{EncodedModel, EncoderInfo};
#[cfg(feature = "mistralrs")]
pub use mistral::load;
