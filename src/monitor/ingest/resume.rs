//! From what the journal has kept of a run to the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::run::Run;
use super::window::Window;
use crate::monitor::answers::{BaselineAnswers, BaselineOrigin, BaselineSet};
use crate::monitor::journal::{BaselineRecord, StoredRun, unix_seconds};
use crate::monitor::settings::MonitorConfig;

/// The run, and the windows that were complete and not evaluated. `server` are the server's settings,
/// `checkpoint` is its baseline.
pub(super) fn resume(
    stored: StoredRun,
    server: &Arc<MonitorConfig>,
    checkpoint: Option<&Arc<BaselineSet>>,
) -> (Run, Vec<Window>) {
    let name = stored.record.name;
    let mut run = Run::new(name.clone(), stored.id, server.clone(), checkpoint.cloned());
    if let Err(error) = run.configure(server, &stored.record.config) {
        let setting = error.pointer;
        tracing::warn!(
            run = name,
            setting,
            error.message,
            "the run's own settings do not hold here"
        );
    }
    for record in stored.recorded {
        run.record_baseline(&record.into_samples());
    }
    if let Some(baseline) = stored.baseline.and_then(|record| baseline(record, &run)) {
        run.use_baseline(Arc::new(baseline));
    }

    let consumed = stored.state.as_ref().map_or(0, |state| state.consumed);
    let mut last = Window {
        first: stored.state.as_ref().map_or(0, |state| state.window),
        end: consumed,
        ..Window::default()
    };
    let mut open = Vec::new();
    for (first, record) in stored.samples_from_window {
        let step = record.step;
        for (number, sample) in (first..).zip(record.into_samples()) {
            if number < consumed {
                last.samples.push(sample);
            } else {
                open.push((number, step, sample));
            }
        }
    }
    if let Some(row) = stored.evaluations.last() {
        (last.first_step, last.last_step) = (row.first_step, row.last_step);
    }
    let last = (!last.samples.is_empty()).then_some(last);
    if let Some(state) = stored.state
        && let Err(error) = run.restore(state, stored.evaluations, last)
    {
        tracing::error!(run = name, %error, "the state of the run is of another version");
    }
    let windows =
        open.into_iter().filter_map(|(number, step, sample)| run.add_again(number, step, sample));
    let windows = windows.collect();
    run.go_on_at(stored.samples);

    let age = Duration::try_from_secs_f64(unix_seconds() - stored.last_seen).unwrap_or_default();
    let now = Instant::now();
    run.seen_at(now.checked_sub(age).unwrap_or(now));
    (run, windows)
}

fn baseline(record: BaselineRecord, run: &Run) -> Option<BaselineSet> {
    let BaselineRecord { version, origin, rows, dimension, latents, rewards, prompts } = record;
    let answers = if origin == BaselineOrigin::Recorded {
        let mut answers = run.recorded_answers().clone();
        answers.truncate(rows);
        answers
    } else {
        BaselineAnswers {
            latents: latents.into_iter().map(f64::from).collect(),
            dimension,
            rewards: rewards.unwrap_or_default(),
            prompts: prompts.unwrap_or_default(),
        }
    };
    BaselineSet::new(answers, origin, version)
}
