//! Puts the server together: checkpoint, device, engine, monitor, HTTP.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Span;

use crate::config::ServerConfig;
use crate::engine::{Engine, ScoreCache, Tokeniser};
use crate::http::{App, AppState, Keys, connections, router};
use crate::metrics::Metrics;
use crate::model_loader::ServedModel;
use crate::monitor::Monitor;
use crate::placement::Devices;
use crate::telemetry;
use crate::verify::Verified;

/// Loads every model and starts its engine and monitor.
///
/// # Errors
/// A checkpoint that cannot be served, two models of one name, settings out of range, or a machine without threads left.
pub fn build(config: ServerConfig) -> anyhow::Result<AppState> {
    let started = Instant::now();
    let keys = Arc::new(keys(&config)?);
    let draining = Arc::new(AtomicBool::new(false));
    let mut apps: Vec<App> = Vec::with_capacity(config.models.len() + 1);
    // One that cannot be opened is known before any is started.
    for (name, own, served) in open(&config)? {
        let several = !config.models.is_empty();
        let app = build_one(own, name, served, several, started, (keys.clone(), draining.clone()));
        apps.push(match name {
            Some(name) => app.with_context(|| format!("models: {name}"))?,
            None => app?,
        });
    }
    let others = apps.split_off(1);
    let first = apps.pop().context("no model")?;
    Ok(AppState::new(first, others))
}

/// Opens every model: its name where it is not the first one, its settings, and its checkpoints.
fn open(config: &ServerConfig) -> anyhow::Result<Vec<(Option<&str>, ServerConfig, ServedModel)>> {
    let models = config.each_model().into_iter().map(|(name, own)| {
        let at = || name.map_or_else(|| "model".to_owned(), |name| format!("models: {name}"));
        let served = ServedModel::open(&own).with_context(at)?;
        if name.is_none() {
            config.check_first_name(&served.checkpoint.name)?;
        }
        Ok((name, own, served))
    });
    models.collect()
}

/// Loads one model. Where there are several, its metrics and its threads' logs have its name.
fn build_one(
    config: ServerConfig,
    name: Option<&str>,
    served: ServedModel,
    several: bool,
    started: Instant,
    (keys, draining): (Arc<Keys>, Arc<AtomicBool>),
) -> anyhow::Result<App> {
    let Devices { scorers, name: device, precision, encoder: foreign_encoder } =
        Devices::load(&config, &served)?;
    let ensemble = served.ensemble_info();
    let ServedModel { checkpoint, objectives, weights, .. } = served;
    if let Some(scorer) = scorers.first() {
        Verified::at_start(&config, &checkpoint.encoder, scorer.as_ref())?;
    }
    let name = name.unwrap_or(&checkpoint.name).to_owned();
    let metrics = if several { Metrics::of_model(&name)? } else { Metrics::new()? };
    let span = if several { telemetry::model_span(&name) } else { Span::none() };
    let _entered = span.enter();
    let head = checkpoint.config.head.clone();
    let latent_dim = head.latent_dim();
    let monitor = latent_dim
        .map(|_| {
            let baseline = checkpoint.baseline.as_ref();
            let settings = config.monitor.clone();
            Monitor::start(settings, baseline, &weights, metrics.clone())
        })
        .transpose()?;
    let cache = ScoreCache::new(&weights, &config.cache, &metrics);
    let engine = Engine::start(scorers, &config.engine, cache, monitor.clone(), metrics.clone())?;
    let encoder = Tokeniser::new(checkpoint.encoder, config.engine.tokeniser_threads)?;
    let baseline_samples = checkpoint.baseline.as_ref().map_or(0, |baseline| baseline.len());
    tracing::info!(
        model = %checkpoint.folder.display(),
        weights,
        members = ensemble.as_ref().map(|ensemble| ensemble.members.len()),
        device,
        latent_dim,
        baseline_samples,
        seconds = started.elapsed().as_secs_f64(),
        "checkpoint loaded"
    );
    if latent_dim.is_none() {
        tracing::warn!("a standard reward head has no latents: runs are not monitored");
    }
    Ok(App {
        engine,
        monitor,
        draining,
        encoder,
        metrics,
        model: name,
        weights,
        latent_weights: checkpoint.weights,
        objectives,
        ensemble,
        head,
        latent_dim,
        baseline_samples,
        device,
        dtype: precision.name(),
        foreign_encoder,
        keys,
        plots: Arc::default(),
        config,
    })
}

/// The keys, where there is a file of them.
fn keys(config: &ServerConfig) -> anyhow::Result<Keys> {
    let file = &config.auth.keys_file;
    if file.as_os_str().is_empty() { Ok(Keys::default()) } else { Keys::read(file) }
}

/// Checks settings beyond their types and ranges, as far as that goes without loading a model: the
/// log's filter, the keys, and that the checkpoint opens.
///
/// # Errors
/// The first setting that could not be used, with its key.
pub fn check(config: &ServerConfig) -> anyhow::Result<()> {
    telemetry::filter(&config.log)?;
    keys(config)?;
    open(config)?;
    println!("{} would be served on {}:{}", config.model.display(), config.host, config.port);
    Ok(())
}

/// Serves until `shutdown` resolves, finishes what was accepted, and stops engine and monitor.
///
/// # Errors
/// Where engine and monitor cannot be waited for.
pub async fn serve(
    state: AppState,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let grace = Duration::from_millis(state.config.shutdown_grace_ms);
    let (begin, begun) = tokio::sync::oneshot::channel();
    let ending = state.clone();
    let shutdown = async move {
        shutdown.await;
        ending.draining.store(true, Ordering::Relaxed);
        tracing::info!("shutting down: finishing what was accepted");
        let _ = begin.send(());
    };
    let server =
        connections::serve(listener, router(state.clone()), &state.config.limits, shutdown);
    let give_up = async {
        match begun.await {
            Ok(()) => tokio::time::sleep(grace).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = server => {},
        () = give_up => {
            tracing::warn!("connections were still open after the grace period");
            state.each().for_each(|state| state.engine.abandon());
        }
    }
    tokio::task::spawn_blocking(move || {
        for state in state.each() {
            state.engine.join();
            if let Some(monitor) = &state.monitor {
                monitor.stop();
            }
        }
    })
    .await?;
    tracing::info!("stopped");
    Ok(())
}

/// Builds, binds and serves until SIGTERM or SIGINT.
///
/// # Errors
/// As [`build`] and [`serve`], or where the address cannot be bound.
pub fn run(config: ServerConfig) -> anyhow::Result<()> {
    let _telemetry = telemetry::start(&config.log)?;
    let address = (config.host, config.port);
    raise_open_files();
    let state = build(config)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listener = connections::listen(address.into())
            .with_context(|| format!("cannot listen on {}:{}", address.0, address.1))?;
        reload_keys(&state)?;
        tracing::info!("listening on http://{}", listener.local_addr()?);
        serve(state, listener, async move {
            tokio::select! {
                _ = terminate.recv() => {},
                _ = interrupt.recv() => {},
            }
        })
        .await
    })
}

/// Reads the keys file again at every SIGHUP. Without such a file SIGHUP ends the process, as it does
/// where a terminal is closed.
fn reload_keys(state: &AppState) -> std::io::Result<()> {
    if !state.keys.are_set() {
        return Ok(());
    }
    let mut hangup = signal(SignalKind::hangup())?;
    let state = state.clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            if let Err(error) = state.keys.reload() {
                tracing::error!(error = format!("{error:#}"), "the keys stay as they were");
            }
        }
    });
    Ok(())
}

/// Every connection is an open file, and the usual soft limit is 1,024.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
