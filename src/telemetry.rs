//! Structured logs.

use std::io::IsTerminal;
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Settings of the logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or directives as `info,inform::monitor=debug`.
    pub filter: String,
    /// Text for people or JSON for machines.
    pub format: LogFormat,
    /// Where trace spans go by OTLP over HTTP, as `http://host:4318/v1/traces`; empty for nowhere. Needs
    /// the feature `otlp`.
    pub otlp_endpoint: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text, otlp_endpoint: String::new() }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// The filter of the logs.
///
/// # Errors
/// Where it does not parse.
pub fn filter(config: &LogConfig) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(&config.filter).map_err(|error| anyhow::anyhow!("log.filter: {error}"))
}

/// Name of the spans that [`model_span`] makes.
const MODEL_SPAN: &str = "model";

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

/// Keeps what exports trace spans; dropped, it sends those that wait.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Starts logging to standard error and, where the build has the feature `otlp` and an endpoint is
/// named, exporting trace spans to it.
///
/// # Errors
/// Where the filter does not parse, the exporter cannot be made, or logging was started before.
pub fn start(config: &LogConfig) -> anyhow::Result<Telemetry> {
    let logs = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let logs = match config.format {
        LogFormat::Text => logs.boxed(),
        LogFormat::Json => logs.json().boxed(),
    };
    let (spans, telemetry) = export(config)?;
    tracing_subscriber::registry()
        .with(spans)
        .with(logs)
        .with(filter(config)?)
        .try_init()
        .map_err(|error| anyhow::anyhow!("logging could not start: {error}"))?;
    Ok(telemetry)
}

type Spans = Option<Box<dyn Layer<Registry> + Send + Sync>>;

#[cfg(not(feature = "otlp"))]
fn export(config: &LogConfig) -> anyhow::Result<(Spans, Telemetry)> {
    anyhow::ensure!(
        config.otlp_endpoint.is_empty(),
        "log.otlp_endpoint: this build has no OTLP export; build it with `--features otlp`"
    );
    Ok((None, Telemetry {}))
}

#[cfg(feature = "otlp")]
fn export(config: &LogConfig) -> anyhow::Result<(Spans, Telemetry)> {
    use anyhow::Context;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::{SpanExporter, WithExportConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    if config.otlp_endpoint.is_empty() {
        return Ok((None, Telemetry { provider: None }));
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_endpoint(&config.otlp_endpoint)
        .build()
        .context("log.otlp_endpoint")?;
    let resource = Resource::builder().with_service_name(env!("CARGO_PKG_NAME")).build();
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    // A model's span lasts as long as the server, and would keep what is logged in it until then.
    let lasting = tracing_subscriber::filter::filter_fn(|span| span.name() != MODEL_SPAN);
    let spans = tracing_opentelemetry::layer::<Registry>()
        .with_tracer(provider.tracer(env!("CARGO_PKG_NAME")))
        .with_filter(lasting);
    Ok((Some(spans.boxed()), Telemetry { provider: Some(provider) }))
}

#[cfg(feature = "otlp")]
impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.provider.take().map(|provider| provider.shutdown()) {
            eprintln!("trace spans that waited were not exported: {error}");
        }
    }
}
