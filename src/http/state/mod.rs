//! What handlers share: the models, keys and drawn plots, and how errors are written.

mod app;
mod blocking;
mod error;
mod keys;
mod plot_cache;
mod request_id;

pub(super) use app::NamedInUrl;
pub use app::{App, AppState};
pub(super) use blocking::off_the_event_loop;
pub(super) use error::{
    AnyError, AnyErrors, ApiError, ErrorAnswer, ErrorShape, KeyError, RunErrors, ScoringErrors,
    TeiErrors,
};
pub(super) use keys::Key;
pub use keys::Keys;
pub use plot_cache::PlotCache;
pub(super) use plot_cache::{Plot, RunMap, Snapshot, version};
pub(super) use request_id::{REQUEST_ID, request_id};
