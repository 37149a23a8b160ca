//! Trace spans, exported by OTLP over HTTP.

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::{Layer, Registry};

use super::config::LogConfig;
use super::span::{MODEL_SPAN, Spans};

/// Keeps what exports trace spans; dropped, it sends those that wait.
#[derive(Debug)]
#[must_use]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

pub(super) fn export(config: &LogConfig) -> anyhow::Result<(Spans, Telemetry)> {
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

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.provider.take().map(|provider| provider.shutdown()) {
            eprintln!("trace spans that waited were not exported: {error}");
        }
    }
}
