//! The reward server's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use inform::config::ServerConfig;

/// Keeps freed memory for the next batch: returning it to the system costs as much as the arithmetic.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves an InfoRM or standard reward model over HTTP, and watches each training run for reward
/// over-optimisation.
///
/// Settings: flag over environment (INFORM_PORT, INFORM_MONITOR__WINDOW, ...) over the configuration
/// file over the default.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file, TOML
    #[arg(long, value_name = "FILE", env = "INFORM_CONFIG")]
    config: Option<PathBuf>,
    /// Checkpoint folder [default: configs/demo]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long)]
    port: Option<String>,
    /// Device to score on: auto or cpu [default: auto]
    #[arg(long)]
    device: Option<String>,
    /// Precision of products: f32 or bf16 [default: f32]
    #[arg(long)]
    dtype: Option<String>,
    /// Threads of the device; 0 for one a processor [default: 0]
    #[arg(long)]
    threads: Option<String>,
    /// Any other setting, by its dotted key, as monitor.window=512; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let named = [
        ("model", arguments.model),
        ("host", arguments.host),
        ("port", arguments.port),
        ("device", arguments.device),
        ("dtype", arguments.dtype),
        ("threads", arguments.threads),
    ];
    let mut flags = arguments.set;
    flags.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let config = match ServerConfig::read(arguments.config.as_deref(), &flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    match inform::server::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
