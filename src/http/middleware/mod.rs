//! What every request passes through before and after its handler.

mod admission;
pub(super) mod auth;
pub mod connections;
pub(super) mod drain_body;
pub(super) mod model_choice;
mod rejection_log;
pub(super) mod request_log;

pub(super) use admission::AdmittedBody;
pub(super) use model_choice::ModelQuery;
