//! Structured logs.

#[cfg(not(feature = "otlp"))]
mod absent;
mod config;
#[cfg(feature = "otlp")]
mod otlp;
mod span;

use std::io::IsTerminal;

use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[cfg(not(feature = "otlp"))]
pub use absent::Telemetry;
#[cfg(not(feature = "otlp"))]
use absent::export;
pub use config::{LogConfig, LogFormat, filter};
#[cfg(feature = "otlp")]
pub use otlp::Telemetry;
#[cfg(feature = "otlp")]
use otlp::export;
pub use span::{model_span, spawn};

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
