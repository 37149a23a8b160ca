//! More than the server can do, and more than one run.

use std::time::{Duration, Instant};

use clap::Args;

use crate::ServerOptions;
use crate::load::{Arrivals, HEADER, Load, run};
use crate::server::Server;
use crate::texts::TextOptions;

#[derive(Debug, Args)]
pub(crate) struct FairnessOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    texts: TextOptions,
    /// Clients of the polite run, each with one text a request
    #[arg(long, default_value_t = 1)]
    polite: usize,
    /// Clients of the flooding run
    #[arg(long, default_value_t = 64)]
    flood: usize,
    /// Length of each measurement
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
}

#[derive(Debug, Args)]
pub(crate) struct OverloadOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    texts: TextOptions,
    /// How many times the capacity is asked for
    #[arg(long, default_value_t = 10.0)]
    factor: f64,
    /// Clients that measure the capacity
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Most connections of the overload
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

/// Longest measurement of the capacity.
const CAPACITY_SECONDS: f64 = 15.0;

pub(crate) async fn fairness(options: &FairnessOptions) -> anyhow::Result<()> {
    let flood_texts = options.texts.requests(&options.server.model, false)?;
    let single = TextOptions { inputs: 1, ..options.texts.clone() };
    let polite_texts = single.requests(&options.server.model, false)?;
    let server = Server::start(&options.server)?;
    let load = |run: &str, clients: usize, seconds: f64| Load {
        url: server.url.clone(),
        run: run.to_owned(),
        arrivals: Arrivals::Closed { clients },
        seconds,
        most: None,
    };
    let seconds = options.seconds;
    let polite = load("polite", options.polite, seconds);
    let flood = load("flood", options.flood, seconds);
    let flood_alone = run(&flood, &flood_texts).await?;
    let alone = run(&polite, &polite_texts).await?;
    // The flood is there before the polite run comes, and as long as it is.
    let longer = load("flood", options.flood, seconds + 2.0);
    let beside = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        run(&polite, &polite_texts).await
    };
    let (flood, beside) = tokio::join!(run(&longer, &flood_texts), beside);
    let (flood, beside) = (flood?, beside?);
    println!("{HEADER}");
    println!("{}", flood_alone.row("flood alone"));
    println!("{}", alone.row("polite alone"));
    println!("{}", flood.row("flood beside polite"));
    println!("{}", beside.row("polite beside flood"));
    let ratio = |quantile| beside.milliseconds(quantile) / alone.milliseconds(quantile);
    println!(
        "\npolite, beside / alone: p50 {:.2}, p99 {:.2}; both together {:.2} of the flood's tokens/s alone",
        ratio(0.5),
        ratio(0.99),
        (flood.tokens_per_second() + beside.tokens_per_second()) / flood_alone.tokens_per_second()
    );
    Ok(())
}

pub(crate) async fn overload(options: &OverloadOptions) -> anyhow::Result<()> {
    let requests = options.texts.requests(&options.server.model, false)?;
    let server = Server::start(&options.server)?;
    let load = |arrivals, seconds| Load {
        url: server.url.clone(),
        run: "load".to_owned(),
        arrivals,
        seconds,
        most: None,
    };
    let closed = Arrivals::Closed { clients: options.clients };
    let seconds = CAPACITY_SECONDS.min(options.seconds);
    run(&load(closed, seconds / 5.0), &requests).await?;
    let peak = run(&load(closed, seconds), &requests).await?;
    let before = server.usage()?.megabytes;
    let most = std::cell::Cell::new(before);
    let watch = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Ok(usage) = server.usage() {
                most.set(most.get().max(usage.megabytes));
            }
        }
    };
    let rate = options.factor * peak.requests_per_second();
    let open = Arrivals::Open { rate, connections: options.connections };
    let flood = load(open, options.seconds);
    let flood = tokio::select! {
        report = run(&flood, &requests) => report?,
        () = watch => unreachable!("the watch has no end"),
    };
    let started = Instant::now();
    let single = Load { most: Some(1), ..load(Arrivals::Closed { clients: 1 }, 60.0) };
    let after = run(&single, &requests).await?;
    println!("{HEADER}");
    println!("{}", peak.row(&format!("{} clients", options.clients)));
    println!("{}", flood.row(&format!("{} times that, {:.0} requests/s", options.factor, rate)));
    println!("{}", after.row("one request at once afterwards"));
    println!(
        "\naccepted: {:.2} of the peak's tokens/s; refusals without Retry-After: {}; \
         {:.0} requests/s were really sent; well again after {:.0} ms",
        flood.tokens_per_second() / peak.tokens_per_second(),
        flood.bare_refusals,
        flood.sent() as f64 / flood.seconds,
        started.elapsed().as_secs_f64() * 1e3
    );
    println!("resident memory: {before:.0} MB before, at most {:.0} MB", most.get());
    Ok(())
}
