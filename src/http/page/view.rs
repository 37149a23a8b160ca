//! What stands on the page.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::checkpoint::HeadConfig;
use crate::http::handlers::nothing_yet;
use crate::http::state::{ApiError, AppState, RunMap, Snapshot};
use crate::monitor::alerts::{Alert, AlertKind};
use crate::monitor::{Evaluation, Monitor, MonitorError, RunView};
use crate::plots::{Curve, MapProjection, PlotError, Size, short, sparkline};

/// Small enough that its text is readable where the page is as narrow as a phone.
const FIGURE: Size = Size { width: 420, height: 250 };
const MAP: Size = Size { width: 560, height: 470 };
/// Evaluations in the table, and in the curve beside a run's name.
const ROWS: usize = 20;
const SPARK: usize = 60;
/// Alerts that ended which are shown.
const PAST_ALERTS: usize = 10;

static TEMPLATES: LazyLock<Result<Environment<'static>, minijinja::Error>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("number", number);
    environment.add_filter("percent", percent);
    environment.add_filter("text", |value: &Value| or_dash(value, Value::to_string));
    environment
        .add_filter("url", |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
    for (name, source) in [
        ("page.html", include_str!("page.html")),
        ("runs.html", include_str!("runs.html")),
        ("run.html", include_str!("run.html")),
        ("samples.html", include_str!("samples.html")),
    ] {
        environment.add_template(name, source)?;
    }
    Ok(environment)
});

/// The page: of all runs, or of one. Its status tells whether there is that one.
pub(super) fn render(
    state: &AppState,
    run: Option<&str>,
    projection: MapProjection,
) -> Result<(StatusCode, String), ApiError> {
    let mut page = Page { name: run.map(str::to_owned), ..Page::default() };
    let mut status = StatusCode::OK;
    match (&state.monitor, run) {
        (None, _) => {
            page.message = Some((
                "Runs are not monitored".to_owned(),
                "This checkpoint has a standard reward head: it has no latents, so there is no \
                 cluster separation, no latent map, and no alert. Scoring works as ever."
                    .to_owned(),
            ));
            if run.is_some() {
                status = StatusCode::NOT_FOUND;
            }
        }
        (Some(monitor), None) => page.list(state, monitor)?,
        (Some(monitor), Some(name)) => match page.one(state, monitor, name, projection) {
            Ok(()) => {}
            Err(PageError::Unknown) => {
                status = StatusCode::NOT_FOUND;
                page.message = Some((
                    "There is no such run".to_owned(),
                    "Runs appear with their first scored answer, and go when they are deleted or \
                     when others have been active since."
                        .to_owned(),
                ));
                page.list(state, monitor)?;
            }
            Err(PageError::Other(error)) => return Err(error),
        },
    }
    let html = page.write(state).map_err(|error| ApiError::internal(format!("{error:#}")))?;
    Ok((status, html))
}

/// What differs between the pages.
#[derive(Default)]
struct Page {
    name: Option<String>,
    /// Title and text.
    message: Option<(String, String)>,
    runs: Option<Vec<Value>>,
    run: Option<Value>,
    /// What a screen reader is told when it changes.
    news: String,
    /// Whether a run is in a state that somebody should look at.
    urgent: bool,
}

enum PageError {
    Unknown,
    Other(ApiError),
}

// One for each: a blanket one conflicts with what the crates of the feature `mistralrs` may implement.
impl From<MonitorError> for PageError {
    fn from(error: MonitorError) -> Self {
        Self::Other(error.into())
    }
}

impl From<PlotError> for PageError {
    fn from(error: PlotError) -> Self {
        Self::Other(error.into())
    }
}

impl Page {
    fn write(self, state: &AppState) -> Result<String, minijinja::Error> {
        let environment = TEMPLATES.as_ref().map_err(|error| {
            minijinja::Error::new(minijinja::ErrorKind::BadSerialization, error.to_string())
        })?;
        environment.get_template("page.html")?.render(context! {
            name => self.name,
            message => self.message.map(|(title, text)| context! { title, text }),
            runs => self.runs,
            run => self.run,
            news => self.news,
            urgent => self.urgent,
            server => server(state),
            models => models(state),
            // What links carry so that they stay with the model.
            query => query(state, '?'),
            and_query => query(state, '&'),
        })
    }

    fn list(&mut self, state: &AppState, monitor: &Monitor) -> Result<(), ApiError> {
        let mut news = Vec::new();
        let mut rows = Vec::new();
        for view in monitor.runs() {
            let run_state = RunStatus::of(&view);
            // A run may go between the list and this.
            let Ok(snapshot) = state.plots.snapshot(monitor, &view.id) else { continue };
            let known = &snapshot.curves.rows;
            let values: Vec<_> = known[known.len().saturating_sub(SPARK)..]
                .iter()
                .map(|row| row.statistics.csi_per_sample)
                .collect();
            let last = view.last_evaluation.as_ref();
            rows.push(context! {
                id => view.id,
                state => run_state.value(),
                step => last.and_then(|row| row.last_step),
                csi_per_sample => last.and_then(|row| row.statistics.csi_per_sample),
                spark => Value::from_safe_string(sparkline(&values)),
                energy_p => last.and_then(|row| row.energy_p),
                reward_mean => last.map(|row| row.statistics.reward_mean),
                samples => view.samples,
                evaluations => view.evaluations,
            });
            if run_state.bad {
                self.urgent = true;
                news.push(format!("{}: {}.", view.id, run_state.text));
            }
        }
        self.news = format!("{} runs. {}", rows.len(), news.join(" "));
        self.runs = Some(rows);
        Ok(())
    }

    fn one(
        &mut self,
        state: &AppState,
        monitor: &Monitor,
        name: &str,
        projection: MapProjection,
    ) -> Result<(), PageError> {
        let found = |error: MonitorError| match error {
            MonitorError::UnknownRun(_) => PageError::Unknown,
            error => PageError::Other(error.into()),
        };
        let view = monitor.run(name).map_err(found)?;
        let snapshot = state.plots.snapshot(monitor, name).map_err(found)?;
        let run_state = RunStatus::of(&view);
        self.urgent = run_state.bad;
        self.news = format!("{name}: {}.", run_state.text);
        let last = view.last_evaluation.as_ref();
        let mut figures = Vec::new();
        for curve in Curve::ALL {
            let drawing = state.plots.curve(&snapshot, curve, FIGURE, false)?;
            let name = curve.name();
            figures.push(context! {
                name,
                title => curve.title(),
                meaning => curve.meaning(),
                svg => Value::from_safe_string(drawing.inline(&format!("plot-{name}"))),
            });
        }
        let map = map(state, monitor, &snapshot, projection)?;
        let rows = snapshot.curves.rows.iter().rev().take(ROWS).map(Value::from_serialize);
        let config = serde_json::to_string_pretty(&view.config).unwrap_or_default();
        self.run = Some(context! {
            id => name,
            state => run_state.value(),
            step => last.and_then(|row| row.last_step),
            samples => view.samples,
            evaluations => view.evaluations,
            open_window => view.open_window,
            age => last.map(|row| age(row.finished_at)),
            stop => view.stopped_at.as_ref().map(|row| context! {
                at => place(row.number, row.last_step),
                reason => row.reason,
            }),
            reason => last.and_then(|row| row.reason.as_ref()),
            tiles => last.map(tiles).unwrap_or_default(),
            alerts => alerts(&view),
            figures => figures,
            map => map.value,
            worst => map.worst,
            no_worst => map.no_worst,
            rows => rows.collect::<Vec<_>>(),
            baseline => baseline(&view),
            config => config,
        });
        Ok(())
    }
}

/// A run's state in a word or two.
struct RunStatus {
    text: String,
    bad: bool,
    good: bool,
}

impl RunStatus {
    fn of(view: &RunView) -> Self {
        let last = view.last_evaluation.as_ref();
        let alerts = last.map(|row| row.alerts.as_slice()).unwrap_or_default();
        let mut bad: Vec<String> = Vec::new();
        if !alerts.is_empty() {
            let names: Vec<_> = alerts.iter().map(|kind| kind.name()).collect();
            bad.push(format!("alert: {}", names.join(", ")));
        }
        if view.early_stop {
            bad.push("early stop".to_owned());
        }
        let text = if !bad.is_empty() {
            bad.join("; ")
        } else if last.is_none() {
            "first window is filling".to_owned()
        } else if view.baseline.is_none() {
            "no baseline".to_owned()
        } else {
            "no alert".to_owned()
        };
        let good = bad.is_empty() && last.is_some() && view.baseline.is_some();
        Self { text, bad: !bad.is_empty(), good }
    }

    fn value(&self) -> Value {
        let class = if self.bad {
            "bad"
        } else if self.good {
            "good"
        } else {
            "none"
        };
        context! { text => self.text, class }
    }
}

/// The last evaluation's numbers beside what they are on unchanged answers.
fn tiles(row: &Evaluation) -> Vec<Value> {
    use AlertKind::{Collapse, Csi, Energy, Length, Mop};
    let statistics = &row.statistics;
    let null = |value: Option<f64>| value.map(|value| format!("null, 95 %: {}", short(value)));
    let p = row.energy_p.map(|p| format!("p = {}", short(p)));
    let energy =
        [p, null(row.energy_null_p95)].into_iter().flatten().collect::<Vec<_>>().join("; ");
    let rewards = statistics
        .reward_quantiles
        .map(|q| format!("5 to 95 %: {} to {}", short(q.p05), short(q.p95)));
    let rho = statistics.reward_length_rho.map(|rho| format!("reward to length: {}", short(rho)));
    let distinct =
        statistics.distinct_ratio.map(|share| format!("{:.0} % distinct", 100.0 * share));
    let all = [
        ("CSI per sample", statistics.csi_per_sample, null(row.csi_null_p95), Some(Csi)),
        ("Energy distance", statistics.energy, Some(energy), Some(Energy)),
        ("Outliers (MOP)", statistics.mop, null(row.mop_null_p95), Some(Mop)),
        ("CSI change ratio", row.csi_ratio, None, None),
        ("Dispersion", statistics.dispersion_ratio, distinct, Some(Collapse)),
        ("Mean reward", Some(statistics.reward_mean), rewards, None),
        ("Mean tokens", Some(statistics.tokens_mean), rho, Some(Length)),
    ];
    all.into_iter()
        .map(|(name, value, beside, kind)| {
            context! {
                name,
                value => value.map_or_else(|| "\u{2013}".to_owned(), short),
                beside => beside.unwrap_or_default(),
                alert => kind.is_some_and(|kind| row.alerts.contains(&kind)),
            }
        })
        .collect()
}

/// Active alerts, then those that ended, the newest first.
fn alerts(view: &RunView) -> Vec<Value> {
    let past =
        view.alerts.iter().filter(|alert| alert.resolved_at.is_some()).rev().take(PAST_ALERTS);
    let active = view.alerts.iter().filter(|alert| alert.resolved_at.is_none());
    active.chain(past).map(alert).collect()
}

fn alert(alert: &Alert) -> Value {
    let since = place(alert.since_evaluation, alert.since_step);
    let when = match alert.resolved_at {
        None => format!("since {since}, {}", age(alert.since)),
        Some(at) => format!("from {since}, {}; ended {}", age(alert.since), age(at)),
    };
    let samples: Vec<Value> = alert
        .samples
        .iter()
        .map(|sample| {
            context! {
                request => &*sample.request,
                index => sample.index,
                mahalanobis => sample.mahalanobis,
                reward => sample.reward,
                step => alert.since_step,
            }
        })
        .collect();
    context! {
        title => capital(alert.kind.name()),
        resolved => alert.resolved_at.is_some(),
        message => alert.message,
        when,
        samples,
    }
}

/// The latent map, and the table of what it marks.
struct MapView {
    value: Value,
    worst: Vec<Value>,
    no_worst: &'static str,
}

fn map(
    state: &AppState,
    monitor: &Monitor,
    snapshot: &Snapshot,
    projection: MapProjection,
) -> Result<MapView, PageError> {
    let run = snapshot.curves.run.as_str();
    let Some(latest) = monitor.latest(run)? else {
        let drawing = nothing_yet(run.to_owned()).draw(MAP, false)?;
        let value = context! {
            words => "Shows the SFT answers and the policy's last window when there is one.",
            choice => false,
            tsne => false,
            svg => Value::from_safe_string(drawing.inline("plot-latents")),
        };
        return Ok(MapView { value, worst: Vec::new(), no_worst: "No window was evaluated yet." });
    };
    let number = latest.evaluation.number;
    let tsne = projection == MapProjection::Tsne;
    // Of this run, and not of a deleted one of its name.
    let shown = state.plots.last_tsne(run).filter(|map| {
        tsne && snapshot
            .curves
            .rows
            .iter()
            .any(|row| crate::http::state::version(Some(row)) == map.version)
    });
    let computing = "t-SNE is being computed and appears when it is ready.";
    let note = match &shown {
        Some(map) if map.latest.evaluation.number == number => String::new(),
        Some(map) => format!(" It shows evaluation {}; {computing}", map.latest.evaluation.number),
        None if tsne => format!(" {} Until then, principal components.", capital(computing)),
        None => String::new(),
    };
    let (map, projection) = match shown {
        Some(map) => (map, MapProjection::Tsne),
        None => (state.plots.principal(run, latest), MapProjection::Pca),
    };
    let drawing = state.plots.map(&map, projection, MAP, false)?;
    let value = context! {
        words => format!("{}{note}", drawing.description),
        choice => true,
        tsne => tsne,
        svg => Value::from_safe_string(drawing.inline("plot-latents")),
    };
    Ok(MapView {
        value,
        worst: worst(&map),
        no_worst: "Without a baseline there is no distance from it.",
    })
}

fn worst(map: &RunMap) -> Vec<Value> {
    let window = &map.latest.window;
    let step = match (window.first_step, window.last_step) {
        (Some(first), Some(last)) if first < last => Some(format!("{first}\u{2013}{last}")),
        (_, last) => last.map(|step| step.to_string()),
    };
    map.farthest
        .iter()
        .map(|&(position, distance)| {
            let sample = &window.samples[position];
            context! {
                request => &*sample.request,
                index => sample.index,
                mahalanobis => distance,
                reward => sample.reward,
                step,
            }
        })
        .collect()
}

fn baseline(view: &RunView) -> String {
    match view.baseline {
        None => "No baseline: what compares with SFT answers is left out. Record one with \
                 \"role\": \"baseline\", or put one into the checkpoint."
            .to_owned(),
        Some(origin) => {
            let origin = serde_json::to_value(origin).unwrap_or_default();
            let version = view.baseline_version.unwrap_or_default();
            format!(
                "{} SFT answers, {}; version {version}.",
                view.baseline_samples,
                origin.as_str().unwrap_or_default(),
            )
        }
    }
}

/// The model in a link's query, after `separator`; nothing for the first, which needs no name.
fn query(state: &AppState, separator: char) -> String {
    match state.is_first() {
        true => String::new(),
        // A further model's name is letters, digits and signs that a URL takes as they are.
        false => format!("{separator}model={}", state.model),
    }
}

/// Names of all models, with their links; none where there is one.
fn models(state: &AppState) -> Vec<Value> {
    let link = |other: AppState| {
        let current = other.model == state.model;
        context! { name => other.model, query => query(&other, '?'), current }
    };
    if state.has_several() { state.each().map(link).collect() } else { Vec::new() }
}

fn server(state: &AppState) -> Value {
    let metrics = &state.metrics;
    let tokens = |kind: &str| metrics.tokens.with_label_values(&[kind]).get();
    let logical = tokens("logical");
    let known = tokens("cached") + tokens("merged");
    let head = match &state.head {
        HeadConfig::Standard(_) => "standard".to_owned(),
        _ => format!("InfoRM, {} dimensions", state.latent_dim.unwrap_or_default()),
    };
    let head = match &state.ensemble {
        Some(ensemble) => format!("{head}; the first of {} members", ensemble.members.len()),
        None => head,
    };
    context! {
        model => state.model,
        weights => state.weights,
        device => state.device,
        head,
        version => env!("CARGO_PKG_VERSION"),
        rate => state.plots.rate(logical),
        queue => metrics.queue_tokens.get(),
        cached => (logical > 0).then(|| known as f64 / logical as f64),
        rewards => metrics.reward.get_sample_count(),
        monitored => state.monitor.is_some(),
        lag_ms => 1000.0 * metrics.monitor_lag_seconds.get(),
        dropped => metrics.monitor_dropped.get(),
    }
}

fn place(number: u64, step: Option<u64>) -> String {
    step.map_or_else(|| format!("evaluation {number}"), |step| format!("step {step}"))
}

/// How long ago, so coarsely that it seldom changes; the exact time is for machines.
fn age(unix: f64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(unix).unwrap_or_default();
    let seconds = SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
    let ago = match seconds {
        0..60 => "less than a minute ago".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    };
    format!("{ago} ({})", httpdate::fmt_http_date(at))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn or_dash(value: &Value, text: impl FnOnce(&Value) -> String) -> String {
    if value.is_none() { "\u{2013}".to_owned() } else { text(value) }
}

fn number(value: &Value) -> String {
    or_dash(value, |value| f64::try_from(value.clone()).map_or_else(|_| value.to_string(), short))
}

fn percent(value: &Value) -> String {
    or_dash(value, |value| {
        f64::try_from(value.clone())
            .map_or_else(|_| value.to_string(), |share| format!("{} %", short(100.0 * share)))
    })
}
