//! Spans that say of a log line which model it is of, and threads that keep them.

use std::thread::JoinHandle;

use tracing::Span;
use tracing_subscriber::{Layer, Registry};

/// Name of the spans that [`model_span`] makes.
pub(super) const MODEL_SPAN: &str = "model";

/// What says in logs which of several models they are of. Of the highest level, so that no filter that lets a message
/// through takes its model away.
pub fn model_span(name: &str) -> Span {
    tracing::error_span!(MODEL_SPAN, name)
}

/// Starts a thread of this name. Its logs are in the span in which it is started.
///
/// # Errors
/// Where the operating system refuses the thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let span = Span::current();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || span.in_scope(work))
}

/// What sends spans away, if anything does.
pub(super) type Spans = Option<Box<dyn Layer<Registry> + Send + Sync>>;
