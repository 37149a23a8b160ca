//! Work that blocks.

use super::error::ApiError;

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Where it panics.
pub(in crate::http) async fn off_the_event_loop<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(error.to_string()))
}
