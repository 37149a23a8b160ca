//! The threads that a device works with.

use rayon::prelude::*;

/// A fixed pool, or the calling thread.
#[derive(Debug)]
pub(super) enum Threads {
    /// Whoever calls.
    Current,
    /// More than one thread.
    Pool(rayon::ThreadPool),
}

impl Threads {
    /// `count` threads, or one for each processor where `count` is 0.
    pub(super) fn new(count: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("cpu-ops-{i}"))
            .build()?;
        Ok(Self::Pool(pool))
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Self::Current => 1,
            Self::Pool(pool) => pool.current_num_threads(),
        }
    }

    /// Runs `task(0 .. count)`, each once.
    pub(super) fn run(&self, count: usize, task: impl Fn(usize) + Sync + Send) {
        match self {
            Self::Pool(pool) if count > 1 && pool.current_num_threads() > 1 => {
                pool.install(|| (0..count).into_par_iter().with_max_len(1).for_each(task));
            }
            _ => (0..count).for_each(task),
        }
    }

    /// As [`Threads::run`]; stops at an error and returns it.
    pub(super) fn try_run<E: Send>(
        &self,
        count: usize,
        task: impl Fn(usize) -> Result<(), E> + Sync + Send,
    ) -> Result<(), E> {
        match self {
            Self::Pool(pool) if count > 1 && pool.current_num_threads() > 1 => {
                pool.install(|| (0..count).into_par_iter().with_max_len(1).try_for_each(task))
            }
            _ => (0..count).try_for_each(task),
        }
    }

    /// Runs `work` where rayon's parallel iterators use these threads.
    pub(super) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Self::Current => work(),
            Self::Pool(pool) => pool.install(work),
        }
    }
}
