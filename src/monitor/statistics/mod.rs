//! What is computed of a window.

pub mod csi;
mod gram;
pub mod mahalanobis;
pub mod neighbours;
pub mod null;
