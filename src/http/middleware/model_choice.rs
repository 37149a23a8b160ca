//! Several models on one server: which one a request is for.
//!
//! Each has its own engine, cache, monitor and tokeniser. `?model=NAME` in the URL chooses on every route, before anything
//! else looks at the request; where there is none, the body's `model` does on routes that score.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Uri;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use tower::ServiceExt;
use utoipa::IntoParams;

use crate::http::state::{ApiError, AppState, NamedInUrl};

/// The parameter of a URL that names a model.
const PARAMETER: &str = "model";

/// What is wrong with how a request's URL names its model.
#[derive(Debug, Clone)]
struct Misnamed(ApiError);

/// Sends each request to the router of the model that its URL names, without the name, or else to the first. One whose
/// model is not known goes to the first as well, where [`check_url`] answers it.
pub(in crate::http) fn dispatch(state: &AppState, router: impl Fn(AppState) -> Router) -> Router {
    let routers: Arc<[(AppState, Router)]> =
        state.each().map(|state| (state.clone(), router(state))).collect();
    let service = tower::service_fn(move |mut request: Request| {
        let place = |name: String| match routers.iter().position(|(state, _)| state.model == name) {
            Some(place) => Ok(place),
            // While there is one, it does not matter what a URL calls it.
            None if routers.len() == 1 => Ok(0),
            None => Err(routers[0].0.unknown(&name)),
        };
        let named = take_model(request.uri_mut()).and_then(|name| name.map(place).transpose());
        let place = match named {
            Ok(None) => 0,
            Ok(Some(place)) => {
                request.extensions_mut().insert(NamedInUrl);
                place
            }
            Err(error) => {
                request.extensions_mut().insert(Misnamed(error));
                0
            }
        };
        routers[place].1.clone().oneshot(request)
    });
    Router::new().fallback_service(service)
}

/// Answers a request whose URL names its model wrongly. Inside of its route: there the answer gets the shape of the route's
/// protocol, and is counted as the route's.
pub(in crate::http) async fn check_url(request: Request, next: Next) -> Response {
    match request.extensions().get::<Misnamed>() {
        Some(Misnamed(error)) => error.clone().into_response(),
        None => next.run(request).await,
    }
}

/// Names a model in a URL.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "only described: it chooses before anything else is read")]
pub(in crate::http) struct ModelQuery {
    /// Which of several models; default the first
    #[param(nullable = false)]
    model: Option<String>,
}

/// Takes `model` out of a URL's query.
///
/// # Errors
/// 400 where it is there more than once: a request must not go to another model than its sender thinks.
fn take_model(uri: &mut Uri) -> Result<Option<String>, ApiError> {
    let Some(query) = uri.query() else { return Ok(None) };
    let is_model = |pair: &&str| {
        let key = pair.split('=').next().unwrap_or_default();
        percent_decode_str(key).eq(PARAMETER.bytes())
    };
    let (named, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_model);
    let pair = match named[..] {
        [] => return Ok(None),
        [pair] => pair,
        _ => {
            let message = format!("the URL names it {} times; name one model", named.len());
            return Err(ApiError::invalid(format!("/{PARAMETER}"), message));
        }
    };
    let value = pair.split_once('=').map_or("", |(_, value)| value).replace('+', " ");
    let name = percent_decode_str(&value).decode_utf8_lossy().into_owned();
    let (path, separator) = (uri.path(), if rest.is_empty() { "" } else { "?" });
    let path_and_query = format!("{path}{separator}{}", rest.join("&"));
    *uri = with_path_and_query(uri, &path_and_query)
        .map_err(|error| ApiError::invalid("", format!("the URL cannot be read: {error}")))?;
    Ok(Some(name))
}

fn with_path_and_query(uri: &Uri, path_and_query: &str) -> Result<Uri, axum::http::Error> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse()?);
    Ok(Uri::from_parts(parts)?)
}
