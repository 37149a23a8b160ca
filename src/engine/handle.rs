//! The handle by which the server scores: cache, queue and threads behind one call.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::cache::{KnownScore, ScoreCache, ScoreKey};
use super::config::EngineConfig;
use super::device_thread::DeviceThread;
use super::error::EngineError;
use super::job::{Job, JobAnswers, JobError, JobScore};
use super::plan::{self, Bounds, Policy};
use super::queue::{Admission, Queue, Request, Ticket};
use super::work::Work;
use crate::metrics::Metrics;
use crate::model::Scorer;
use crate::monitor::{Monitor, Observation, SampleOrigin, Watched};
use crate::telemetry::spawn;

/// Handle to the engine's threads. Cheap to share.
pub struct Engine {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    cache: ScoreCache,
    monitor: Option<Monitor>,
    metrics: Metrics,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Where the answer to a job comes from.
enum Source {
    Known(KnownScore),
    Ticket(Ticket),
}

/// A request's claims. Work that nobody else waits for is forgotten with them.
struct Claims<'a> {
    queue: &'a Queue,
    sources: Vec<Option<Source>>,
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let left = self.sources.drain(..).filter_map(|source| match source {
            Some(Source::Ticket(Ticket { work, .. })) => Some(work),
            _ => None,
        });
        let works: Vec<Arc<Work>> = left.collect();
        if !works.is_empty() {
            self.queue.forget(&works);
        }
    }
}

impl Engine {
    /// Starts a thread for each device, which owns its model from now on, and the planner. All models must
    /// have the same weights, those of `cache`, and give the same bits. JobScore answers are shown to
    /// `monitor`.
    ///
    /// # Errors
    /// Where the operating system refuses a thread.
    pub fn start(
        scorers: Vec<Box<dyn Scorer>>,
        config: &EngineConfig,
        cache: ScoreCache,
        monitor: Option<Monitor>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        Self::start_with(plan::select, scorers, config, cache, monitor, metrics)
    }

    pub(super) fn start_with(
        policy: Policy,
        scorers: Vec<Box<dyn Scorer>>,
        config: &EngineConfig,
        cache: ScoreCache,
        monitor: Option<Monitor>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let bounds = Bounds { budget: config.token_budget, turn: config.turn_tokens };
        let gauge = metrics.queue_tokens.clone();
        let queue = Arc::new(Queue::new(config.queue_tokens, bounds, scorers.len(), policy, gauge));
        let planner = spawn("planner", {
            let queue = queue.clone();
            move || queue.plan_ahead()
        })?;
        let engine = Self {
            queue: queue.clone(),
            threads: Mutex::new(vec![planner]),
            cache: cache.clone(),
            monitor,
            metrics: metrics.clone(),
        };
        // Where this fails, the engine is dropped and the threads so far end.
        for (index, scorer) in scorers.into_iter().enumerate() {
            let (queue, cache, metrics) = (queue.clone(), cache.clone(), metrics.clone());
            let device = DeviceThread { scorer, queue, cache, metrics };
            let spawned = spawn(&format!("device-{index}"), move || device.run())?;
            engine.threads.lock().push(spawned);
        }
        Ok(engine)
    }

    /// Whether a request of so many inputs would be admitted, judged by the inputs so far: to refuse in
    /// time, before it is tokenised or even read. A run that is not known yet counts as one of which
    /// nothing waits.
    ///
    /// # Errors
    /// As [`Engine::score`] where it does not admit.
    pub fn check_room(
        &self,
        run: Option<&str>,
        inputs: usize,
        deadline: Instant,
    ) -> Result<(), EngineError> {
        self.queue.check_room(run, inputs, deadline)
    }

    /// Scores a request's jobs, batched with whatever else is in flight, and shows the monitor what
    /// came out. Where the returned future is dropped, jobs that the device has not begun are
    /// dropped with it, unless others wait for the same.
    ///
    /// # Errors
    /// Where the request is not admitted or the deadline passes; a failing job fails alone.
    pub async fn score(
        &self,
        jobs: Vec<Job>,
        deadline: Instant,
        origin: &SampleOrigin,
    ) -> Result<Vec<Result<JobScore, JobError>>, EngineError> {
        let watched = self.watched(&jobs);
        let mut claims = self.admit(jobs, deadline, origin)?;
        let collect = async {
            let mut answers = Vec::with_capacity(claims.sources.len());
            for source in &mut claims.sources {
                let answer = match source {
                    Some(Source::Ticket(ticket)) => match (&mut ticket.answer).await {
                        Ok(answer) => answer,
                        Err(_) => self.unanswered(deadline)?,
                    },
                    Some(Source::Known(known)) => Ok(answer_known(known)),
                    None => continue,
                };
                *source = None;
                answers.push(answer);
            }
            Ok(answers)
        };
        let answers: JobAnswers = tokio::time::timeout_at(deadline.into(), collect)
            .await
            .map_err(|_| EngineError::DeadlineExceeded)??;
        tokio::time::timeout_at(deadline.into(), self.observe(&answers, watched, origin))
            .await
            .map_err(|_| EngineError::DeadlineExceeded)?;
        Ok(answers)
    }

    /// What became of work that was dropped.
    fn unanswered(&self, deadline: Instant) -> Result<Result<JobScore, JobError>, EngineError> {
        if Instant::now() >= deadline {
            Err(EngineError::DeadlineExceeded)
        } else if self.queue.is_closed() {
            Err(EngineError::Draining)
        } else {
            Ok(Err(JobError::Device("the engine lost this input".to_owned())))
        }
    }

    /// Finds or queues what answers each job.
    fn admit(
        &self,
        jobs: Vec<Job>,
        deadline: Instant,
        origin: &SampleOrigin,
    ) -> Result<Claims<'_>, EngineError> {
        let lengths: Vec<usize> = jobs.iter().map(|job| job.ids.len()).collect();
        let mut requests = Vec::new();
        let mut sources: Vec<Option<Source>> = Vec::with_capacity(jobs.len());
        for Job { ids, draws, cache, .. } in jobs {
            let key = cache.then(|| self.cache.key(&ids, draws));
            if let Some(known) = key.and_then(|key| self.cache.get(&key)) {
                sources.push(Some(Source::Known(known)));
                continue;
            }
            let without_draws = key.filter(|_| draws > 0).map(ScoreKey::without_draws);
            let known = without_draws.and_then(|key| Some(self.cache.get(&key)?.score));
            sources.push(None);
            requests.push(Request { ids: ids.into(), draws, key, known });
        }
        let admitted = self.queue.push(&origin.run, requests, deadline, &self.cache)?;
        let mut admitted = admitted.into_iter();

        let metrics = &self.metrics;
        metrics.count_tokens("logical", lengths.iter().sum());
        for (source, tokens) in sources.iter_mut().zip(lengths) {
            let (found, counter) = match source {
                Some(_) => (None, Some(("cached", &metrics.cache_hits))),
                None => match admitted.next() {
                    Some(Admission::Known(known)) => {
                        (Some(Source::Known(known)), Some(("cached", &metrics.cache_hits)))
                    }
                    Some(Admission::Joined(ticket)) => {
                        (Some(Source::Ticket(ticket)), Some(("merged", &metrics.cache_merged)))
                    }
                    Some(Admission::Queued(ticket)) => {
                        let counter = if ticket.work.known.is_some() {
                            Some(("cached", &metrics.cache_hits))
                        } else {
                            if ticket.work.key.is_some() && self.cache.is_on() {
                                metrics.cache_misses.inc();
                            }
                            None
                        };
                        (Some(Source::Ticket(ticket)), counter)
                    }
                    None => (None, None),
                },
            };
            if let Some((kind, counter)) = counter {
                metrics.count_tokens(kind, tokens);
                counter.inc();
            }
            if found.is_some() {
                *source = found;
            }
        }
        Ok(Claims { queue: &self.queue, sources })
    }

    /// What the monitor is to be told of each job; nothing where nobody listens.
    fn watched(&self, jobs: &[Job]) -> Vec<Watched> {
        let watch = |job: &Job| Watched::new(&job.ids, job.index, job.subject);
        if self.monitor.is_some() { jobs.iter().map(watch).collect() } else { Vec::new() }
    }

    /// Waits for the monitor only where its journal is to hold the samples before they are answered.
    async fn observe(&self, answers: &JobAnswers, watched: Vec<Watched>, origin: &SampleOrigin) {
        for scored in answers.iter().flatten() {
            self.metrics.reward.observe(f64::from(scored.score.reward));
        }
        if let Some(monitor) = self.monitor.as_ref() {
            let samples = answers.iter().zip(watched).filter_map(|(answer, watched)| {
                let score = &answer.as_ref().ok()?.score;
                let latent = score.latent.as_ref()?;
                Some(watched.scored(score.reward, latent, origin.request.clone()))
            });
            monitor.observe(Observation::new(origin.clone(), samples.collect())).await;
        }
    }

    /// Whether new requests are admitted.
    pub fn is_accepting(&self) -> bool {
        !self.queue.is_closed()
    }

    /// Stops admission, and drops what the device has not begun.
    pub fn abandon(&self) {
        self.queue.abandon();
    }

    /// Stops admission, and waits until everything admitted before is scored.
    pub fn join(&self) {
        self.queue.close();
        for thread in self.threads.lock().drain(..) {
            // The threads catch the panics of a batch; one outside was printed already.
            let _ = thread.join();
        }
    }
}

fn answer_known(known: &KnownScore) -> JobScore {
    JobScore {
        score: (*known.score).clone(),
        reward_std: known.reward_std,
        cached: true,
        queue: Duration::ZERO,
        device: Duration::ZERO,
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}
