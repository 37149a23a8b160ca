//! Bodies of requests that were answered before they were read.
//!
//! hyper closes a connection whose request was not read to its end. A client that is still sending would see
//! a broken pipe instead of its 401 or 503, and one that keeps connections would find out with its next
//! request. So what a handler left is read before the answer goes out, and where that takes too much, the
//! answer says that the connection ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

use crate::http::state::AppState;

/// Bytes of an unwanted body that are read.
const DISCARDED: usize = 1 << 20;

/// Where a body comes back to that was not read to its end.
type Home = Arc<Mutex<Option<Body>>>;

/// A request's body on its way through the handlers.
struct LentBody {
    body: Body,
    home: Home,
}

impl HttpBody for LentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LentBody {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            *self.home.lock() = Some(std::mem::take(&mut self.body));
        }
    }
}

/// Reads what the handlers left of a request's body.
pub(in crate::http) async fn finish(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    // A client that waits to be told to send its body (RFC 9110, 10.1.1) is not made to.
    let waits = request.headers().contains_key(header::EXPECT);
    let home = Home::default();
    let lent = request.map(|body| Body::new(LentBody { body, home: home.clone() }));
    let mut response = next.run(lent).await;
    let Some(rest) = home.lock().take() else { return response };
    // A body that was too slow once is not given more time.
    let hopeless = waits || response.status() == StatusCode::REQUEST_TIMEOUT;
    let time = Duration::from_millis(state.config.limits.body_timeout_ms);
    if hopeless || !matches!(tokio::time::timeout(time, discard(rest)).await, Ok(true)) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the body's end was reached.
async fn discard(mut body: Body) -> bool {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        length += frame.data_ref().map_or(0, |data| data.len());
        if length > DISCARDED {
            return false;
        }
    }
    true
}
