//! The server against the parts of which it is made.

use std::time::Instant;

use anyhow::Context;
use clap::Args;
use inform::checkpoint::{Checkpoint, Input};
use inform::config::ServerConfig;
use inform::model::Scorer;
use inform::model_loader::ServedModel;
use inform::monitor::Role;
use inform::ops::Packing;
use inform::placement::Devices;
use tokio::runtime::Runtime;

use crate::load::{Arrivals, Load, run};
use crate::server::{Server, Usage};
use crate::texts::{Prepared, TextOptions};
use crate::{ServerOptions, load};

#[derive(Debug, Args)]
pub(crate) struct OfflineOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    texts: TextOptions,
    #[arg(long, default_value_t = 64)]
    clients: usize,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Debug, Args)]
pub(crate) struct ProcessorOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    texts: TextOptions,
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Requests of a round
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[derive(Debug, Args)]
pub(crate) struct MonitorOptions {
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    texts: TextOptions,
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Requests of a round
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// The server's settings, and the model as it would load it.
struct Offline {
    config: ServerConfig,
    model: Box<dyn Scorer>,
    texts: Vec<Vec<u32>>,
}

impl Offline {
    fn new(
        options: &ServerOptions,
        checkpoint: &Checkpoint,
        texts: &[Input],
    ) -> anyhow::Result<Self> {
        let pairs = options.set.iter().map(|pair| {
            let (key, value) = pair.split_once('=').context("expected KEY=VALUE")?;
            Ok((key.to_owned(), value.to_owned()))
        });
        let mut config = ServerConfig::read(None, &pairs.collect::<anyhow::Result<Vec<_>>>()?)?;
        config.model.clone_from(&options.model);
        let mut devices = Devices::load(&config, &ServedModel::open(&config)?)?;
        anyhow::ensure!(devices.scorers.len() == 1, "compares one device: name it in `device`");
        let model = devices.scorers.remove(0);
        let encode = |text: &Input| Ok(checkpoint.encoder.encode(text, true)?.ids);
        let texts = texts.iter().map(encode).collect::<anyhow::Result<_>>()?;
        Ok(Self { config, model, texts })
    }

    /// Scores all texts, in batches as full as the server's may be.
    fn score(&self) -> anyhow::Result<()> {
        let mut rest = self.texts.as_slice();
        while !rest.is_empty() {
            let mut tokens = 0;
            let count = rest.iter().take_while(|text| {
                tokens += text.len();
                tokens <= self.config.engine.token_budget
            });
            let (batch, later) = rest.split_at(count.count().max(1));
            self.model.score_packed(&Packing::shared(batch).context("an empty text")?)?;
            rest = later;
        }
        Ok(())
    }

    fn tokens(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn closed(server: &Server, clients: usize, most: usize) -> Load {
    Load {
        url: server.url.clone(),
        run: "load".to_owned(),
        arrivals: Arrivals::Closed { clients },
        seconds: 3600.0,
        most: Some(most),
    }
}

/// Runs a load of which every request must succeed.
fn sent(runtime: &Runtime, load: &Load, requests: &[Prepared]) -> anyhow::Result<load::Report> {
    let report = runtime.block_on(run(load, requests))?;
    anyhow::ensure!(report.codes.keys().all(|code| code == "200"), "{:?}", report.codes);
    Ok(report)
}

pub(crate) fn offline(runtime: &Runtime, options: &OfflineOptions) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&options.server.model)?;
    let texts = options.texts.all(&checkpoint)?;
    let requests = options.texts.prepare(&checkpoint, &texts, false, Role::Policy)?;
    let offline = Offline::new(&options.server, &checkpoint, &texts)?;
    let server = Server::start(&options.server)?;
    let load = closed(&server, options.clients, requests.len());
    let mut rates = (Vec::new(), Vec::new());
    println!("{}", load::HEADER);
    // The first round warms up.
    for round in 0..=options.rounds {
        let started = Instant::now();
        offline.score()?;
        let rate = offline.tokens() as f64 / started.elapsed().as_secs_f64();
        let report = sent(runtime, &load, &requests)?;
        if round > 0 {
            println!("{}", report.row(&format!("round {round}")));
            rates.0.push(rate);
            rates.1.push(report.tokens_per_second());
        }
    }
    let (alone, served) = (median(rates.0), median(rates.1));
    println!(
        "\n{} texts, {} tokens, {} clients, medians of {}\n",
        texts.len(),
        offline.tokens(),
        options.clients,
        options.rounds
    );
    println!("| | tokens/s | of offline |\n|---|---|---|");
    println!("| offline | {alone:.0} | 1.00 |");
    println!("| server | {served:.0} | {:.2} |", served / alone);
    Ok(())
}

pub(crate) fn processor(runtime: &Runtime, options: &ProcessorOptions) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&options.server.model)?;
    let texts = options.texts.all(&checkpoint)?;
    let requests = options.texts.prepare(&checkpoint, &texts, false, Role::Policy)?;
    let offline = Offline::new(&options.server, &checkpoint, &texts)?;
    let (server, echo) = (Server::start(&options.server)?, Server::start_echo()?);
    let served = |server: &Server| -> anyhow::Result<f64> {
        let before = server.usage()?.processor_seconds;
        sent(runtime, &closed(server, options.clients, options.requests), &requests)?;
        Ok((server.usage()?.processor_seconds - before) / options.requests as f64 * 1e6)
    };
    let passes = options.requests.div_ceil(requests.len());
    let alone = || -> anyhow::Result<f64> {
        let before = Usage::of("self")?.processor_seconds;
        (0..passes).try_for_each(|_| offline.score())?;
        let seconds = Usage::of("self")?.processor_seconds - before;
        Ok(seconds / (passes * requests.len()) as f64 * 1e6)
    };
    let mut times = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for round in 0..=options.rounds {
        let (echo, forward, request) = (served(&echo)?, alone()?, served(&server)?);
        if round > 0 {
            let values = [echo, forward, request, request / (echo + forward)];
            times.iter_mut().zip(values).for_each(|(times, value)| times.push(value));
        }
    }
    let [echo, forward, request, ratio] = times.map(median);
    println!(
        "{} texts of {:.0} tokens, {} a request, {} clients, {} requests a round, medians of {}\n",
        texts.len(),
        offline.tokens() as f64 / texts.len() as f64,
        options.texts.inputs,
        options.clients,
        options.requests,
        options.rounds
    );
    println!("| | processor time, us a request |\n|---|---|");
    println!("| axum echo of the same JSON | {echo:.1} |");
    println!("| offline forward | {forward:.1} |");
    println!("| server | {request:.1} |");
    println!("| server / (echo + forward) | {ratio:.2} |");
    Ok(())
}

pub(crate) fn monitor(runtime: &Runtime, options: &MonitorOptions) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(&options.server.model)?;
    let texts = options.texts.all(&checkpoint)?;
    let requests = |role| options.texts.prepare(&checkpoint, &texts, false, role);
    let (on, off) = (requests(Role::Policy)?, requests(Role::Eval)?);
    let server = Server::start(&options.server)?;
    let load = closed(&server, options.clients, options.requests);
    let mut rates = (Vec::new(), Vec::new());
    println!("{}", load::HEADER);
    for round in 0..=options.rounds {
        // In turn which comes first.
        let turns = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_on in turns {
            let report = sent(runtime, &load, if is_on { &on } else { &off })?;
            if round > 0 {
                let name = if is_on { "monitored" } else { "not monitored" };
                println!("{}", report.row(&format!("round {round}, {name}")));
                let rates = if is_on { &mut rates.0 } else { &mut rates.1 };
                rates.push(report.tokens_per_second());
            }
        }
    }
    let ratios: Vec<f64> = rates.0.iter().zip(&rates.1).map(|(on, off)| on / off).collect();
    let (on, off) = (median(rates.0), median(rates.1));
    println!(
        "\nmedians of {}: monitored {on:.0} tokens/s, not monitored {off:.0}; ratio of the medians {:.2}, \
         median of the rounds' ratios {:.2}",
        options.rounds,
        on / off,
        median(ratios)
    );
    Ok(())
}
