//! Load on a real server, from real texts.
//!
//!     cargo bench --bench serve -- load --clients 64 --seconds 10
//!     cargo bench --bench serve -- offline --model DIR --data PAIRS.jsonl.gz --texts 256
//!     cargo bench --bench serve -- processor
//!     cargo bench --bench serve -- monitor
//!     cargo bench --bench serve -- fairness --seconds 20
//!     cargo bench --bench serve -- overload --seconds 60
//!
//! Each prints one table. `--help` after a command lists its options. A server is started for the
//! measurement, and stopped after it; `load` takes `--url` instead. Server settings are given as
//! `--set KEY=VALUE`, as for the server itself.
//!
//! Latencies of an open loop count from the moment at which a request was to be sent, whether or not the
//! generator got to it (no coordinated omission).

#![allow(missing_docs)]

mod compare;
mod load;
mod server;
mod stress;
mod texts;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use load::{Arrivals, Load};
use texts::TextOptions;

#[derive(Debug, Parser)]
struct Arguments {
    /// What `cargo bench` adds
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Latencies and throughput of one load
    Load(LoadOptions),
    /// Tokens a second of clients with one text a request, against the offline engine on the same texts
    Offline(compare::OfflineOptions),
    /// Processor time of a request, against an axum echo of the same JSON and the offline forward
    Processor(compare::ProcessorOptions),
    /// Throughput of a run that is monitored, against one that is not
    Monitor(compare::MonitorOptions),
    /// A polite run alone, and beside a flooding one
    Fairness(stress::FairnessOptions),
    /// Ten times what the server can do
    Overload(stress::OverloadOptions),
    /// The server that `processor` compares with: answers any JSON with itself
    #[command(hide = true)]
    Echo,
}

/// The server to measure.
#[derive(Debug, Clone, Args)]
struct ServerOptions {
    /// Checkpoint folder
    #[arg(long, default_value = "configs/demo")]
    model: PathBuf,
    /// A setting of the server; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Args)]
struct LoadOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    texts: TextOptions,
    /// A server that runs already, as http://127.0.0.1:8080
    #[arg(long)]
    url: Option<String>,
    /// Closed loop: each client sends its next request when it has its answer
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Open loop: requests a second, as a Poisson process, over at most `--clients` connections
    #[arg(long)]
    rate: Option<f64>,
    /// Length of the measurement
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Let the score cache answer texts that come again
    #[arg(long)]
    cache: bool,
}

fn main() -> anyhow::Result<()> {
    let Arguments { command, .. } = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        // `cargo test` runs a bench target to see that it starts.
        None => println!("nothing to measure: name a command, see --help"),
        Some(Command::Load(options)) => runtime.block_on(measure(&options))?,
        Some(Command::Offline(options)) => compare::offline(&runtime, &options)?,
        Some(Command::Processor(options)) => compare::processor(&runtime, &options)?,
        Some(Command::Monitor(options)) => compare::monitor(&runtime, &options)?,
        Some(Command::Fairness(options)) => runtime.block_on(stress::fairness(&options))?,
        Some(Command::Overload(options)) => runtime.block_on(stress::overload(&options))?,
        Some(Command::Echo) => server::echo()?,
    }
    Ok(())
}

async fn measure(options: &LoadOptions) -> anyhow::Result<()> {
    let requests = options.texts.requests(&options.server.model, options.cache)?;
    let started = match &options.url {
        Some(_) => None,
        None => Some(server::Server::start(&options.server)?),
    };
    let url = match (&options.url, &started) {
        (Some(url), _) => url.clone(),
        (None, Some(server)) => server.url.clone(),
        (None, None) => anyhow::bail!("no server"),
    };
    let load = Load {
        url,
        run: "load".to_owned(),
        arrivals: match options.rate {
            Some(rate) => Arrivals::Open { rate, connections: options.clients },
            None => Arrivals::Closed { clients: options.clients },
        },
        seconds: options.seconds,
        most: None,
    };
    let report = load::run(&load, &requests).await?;
    println!("{}", load::HEADER);
    println!("{}", report.row("load"));
    Ok(())
}
