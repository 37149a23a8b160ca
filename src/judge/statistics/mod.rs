//! Shares, how well two judgements agree, and how well a number tells them.

mod agreement;
mod auc;
mod share;

pub use agreement::Agreement;
pub use auc::{Auc, auc};
pub use share::Share;
