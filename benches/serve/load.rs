//! The load generator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::net::TcpStream;

use crate::texts::Prepared;

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrivals {
    /// Each client sends its next request when it has its answer.
    Closed { clients: usize },
    /// A Poisson process of so many requests a second.
    Open { rate: f64, connections: usize },
}

/// One run's requests.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) url: String,
    pub(crate) run: String,
    pub(crate) arrivals: Arrivals,
    pub(crate) seconds: f64,
    /// Requests after which it ends.
    pub(crate) most: Option<usize>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Report {
    /// Milliseconds of successes, in steps of a microsecond.
    latencies: Histogram<u64>,
    /// Answers by status; `connection` where there was none.
    pub(crate) codes: BTreeMap<String, u64>,
    /// Refusals without `Retry-After`.
    pub(crate) bare_refusals: u64,
    /// Of successes.
    tokens: u64,
    /// From the first request to the last answer.
    pub(crate) seconds: f64,
    /// Requests whose time came later than a second after it was due: the generator was too slow.
    pub(crate) late: u64,
}

pub(crate) const HEADER: &str = "\
| load | requests/s | tokens/s | p50 ms | p90 ms | p99 ms | p99.9 ms | max ms | codes |
|---|---|---|---|---|---|---|---|---|";

impl Report {
    fn new() -> Self {
        // One microsecond to an hour, three digits: these bounds are always valid.
        let latencies = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("valid bounds");
        Self {
            latencies,
            codes: BTreeMap::new(),
            bare_refusals: 0,
            tokens: 0,
            seconds: 0.0,
            late: 0,
        }
    }

    pub(crate) fn milliseconds(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(crate) fn requests_per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    pub(crate) fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// All requests that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.codes.values().sum()
    }

    /// Counts an answer; tells for how long a refusal asks to wait.
    fn count(
        &mut self,
        answer: anyhow::Result<Answer>,
        tokens: usize,
        latency: Duration,
        late: bool,
    ) -> Option<Duration> {
        self.late += u64::from(late);
        let code = match &answer {
            Ok(answer) => answer.status.to_string(),
            Err(_) => "connection".to_owned(),
        };
        *self.codes.entry(code).or_default() += 1;
        match answer {
            Ok(Answer { status: 200, .. }) => {
                self.tokens += tokens as u64;
                let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
                self.latencies.saturating_record(micros);
                None
            }
            Ok(Answer { status: 503, retry_after }) => {
                self.bare_refusals += u64::from(retry_after.is_none());
                retry_after
            }
            _ => None,
        }
    }

    pub(crate) fn row(&self, name: &str) -> String {
        let [p50, p90, p99, p999, max] = [0.5, 0.9, 0.99, 0.999, 1.0].map(|q| self.milliseconds(q));
        let codes: Vec<String> =
            self.codes.iter().map(|(code, count)| format!("{code}: {count}")).collect();
        let late = match self.late {
            0 => String::new(),
            late => format!("; {late} sent late"),
        };
        format!(
            "| {name} | {:.1} | {:.0} | {p50:.2} | {p90:.2} | {p99:.2} | {p999:.2} | {max:.2} | {}{late} |",
            self.requests_per_second(),
            self.tokens_per_second(),
            codes.join(", ")
        )
    }
}

/// What the connections share.
struct Schedule {
    started: Instant,
    end: Instant,
    next: Instant,
    sent: usize,
    random: ChaCha8Rng,
    report: Report,
}

/// Sends requests, in turn and over again, until the time is over and all are answered.
pub(crate) async fn run(load: &Load, requests: &[Prepared]) -> anyhow::Result<Report> {
    let authority = load.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let connections = match load.arrivals {
        Arrivals::Closed { clients } => clients,
        Arrivals::Open { connections, .. } => connections,
    };
    let started = Instant::now();
    let schedule = Arc::new(Mutex::new(Schedule {
        started,
        end: started + Duration::from_secs_f64(load.seconds),
        next: started,
        sent: 0,
        random: ChaCha8Rng::seed_from_u64(1),
        report: Report::new(),
    }));
    let requests: Arc<[Prepared]> = requests.into();
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let client =
                Client { authority: authority.clone(), run: load.run.clone(), connection: None };
            let (schedule, requests, load) = (schedule.clone(), requests.clone(), load.clone());
            tokio::spawn(connection(client, load, schedule, requests))
        })
        .collect();
    for task in tasks {
        task.await?;
    }
    let schedule = Arc::into_inner(schedule).context("a connection is still open")?.into_inner();
    let mut report = schedule.report;
    report.seconds = schedule.started.elapsed().as_secs_f64();
    Ok(report)
}

async fn connection(
    mut client: Client,
    load: Load,
    schedule: Arc<Mutex<Schedule>>,
    requests: Arc<[Prepared]>,
) {
    loop {
        let (due, number) = {
            let mut schedule = schedule.lock();
            let now = Instant::now();
            let due = match load.arrivals {
                Arrivals::Closed { .. } => now,
                Arrivals::Open { rate, .. } => {
                    let uniform: f64 = schedule.random.random();
                    let gap = -(1.0 - uniform).ln() / rate;
                    schedule.next += Duration::from_secs_f64(gap);
                    schedule.next
                }
            };
            if due >= schedule.end || load.most.is_some_and(|most| schedule.sent >= most) {
                return;
            }
            schedule.sent += 1;
            (due, schedule.sent - 1)
        };
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let late = due.elapsed() > Duration::from_secs(1);
        let request = &requests[number % requests.len()];
        let answer = client.send(request.body.clone()).await;
        let latency = due.elapsed();
        let refused = schedule.lock().report.count(answer, request.tokens, latency, late);
        // A client that waits for its answers also waits when it is told to.
        if let (Some(pause), Arrivals::Closed { .. }) = (refused, load.arrivals) {
            tokio::time::sleep(pause).await;
        }
    }
}

/// A connection, opened when it is needed.
struct Client {
    authority: String,
    run: String,
    connection: Option<SendRequest<Full<Bytes>>>,
}

struct Answer {
    status: u16,
    retry_after: Option<Duration>,
}

impl Client {
    async fn send(&mut self, body: Bytes) -> anyhow::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => {
                let stream = TcpStream::connect(&self.authority).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        connection.ready().await?;
        let request = Request::post("/reward")
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .header("x-run-id", &self.run)
            .body(Full::new(body))?;
        let response = connection.send_request(request).await?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| Some(Duration::from_secs(value.to_str().ok()?.parse().ok()?)));
        let body = response.into_body().collect().await?.to_bytes();
        // An input that failed is not a success.
        let failed = status == 200 && body.starts_with(br#"{"rewards":[null"#);
        self.connection = Some(connection);
        Ok(Answer { status: if failed { 0 } else { status }, retry_after })
    }
}
