//! Windows: consecutive answers of a run that are evaluated together.

use crate::monitor::answers::Sample;

/// The answers of one window.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// Number of the first answer among those of its run, from 0.
    pub first: u64,
    /// Number of the answer after the last one.
    pub end: u64,
    /// First step, where steps are named.
    pub first_step: Option<u64>,
    /// Last step, where steps are named.
    pub last_step: Option<u64>,
    /// The answers, in the order in which they came.
    pub samples: Vec<Sample>,
}

/// Sorts answers into windows: by step where steps are named, else by count.
#[derive(Debug)]
pub(super) struct Windows {
    open: Window,
    /// Answers seen so far: the number of the next one.
    seen: u64,
    window: usize,
    min_window: usize,
    max_window: usize,
}

impl Windows {
    pub(super) fn new(window: usize, min_window: usize, max_window: usize) -> Self {
        Self { open: Window::default(), seen: 0, window, min_window, max_window }
    }

    /// Other limits from now on; the open window stays.
    pub(super) fn set_limits(&mut self, window: usize, min_window: usize, max_window: usize) {
        (self.window, self.min_window, self.max_window) = (window, min_window, max_window);
    }

    /// Answers seen so far.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// The next answer has this number: those before it were seen by another process, or lost.
    pub(super) fn go_on_at(&mut self, number: u64) {
        self.seen = self.seen.max(number);
    }

    /// Adds an answer and returns the window that is complete with it, or that its step completes.
    ///
    /// Steps may arrive out of order by concurrent requests: only a step later than the window's
    /// last one completes it, a straggler joins the open window.
    pub(super) fn add(&mut self, step: Option<u64>, sample: Sample) -> Option<Window> {
        let later = match (step, self.open.last_step) {
            (Some(step), Some(last)) => step > last,
            _ => false,
        };
        let complete =
            if later && self.open.samples.len() >= self.min_window { self.take() } else { None };
        self.open.first_step = self.open.first_step.into_iter().chain(step).min();
        self.open.last_step = self.open.last_step.max(step);
        if self.open.samples.is_empty() {
            self.open.first = self.seen;
        }
        self.seen += 1;
        self.open.end = self.seen;
        self.open.samples.push(sample);
        let limit = if self.open.last_step.is_some() { self.max_window } else { self.window };
        if complete.is_none() && self.open.samples.len() >= limit { self.take() } else { complete }
    }

    /// The open window, if it holds anything; a new one begins.
    pub(super) fn take(&mut self) -> Option<Window> {
        (!self.open.samples.is_empty()).then(|| std::mem::take(&mut self.open))
    }

    /// Answers in the open window.
    pub(super) fn len(&self) -> usize {
        self.open.samples.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(windows: &mut Windows, steps: &[Option<u64>]) -> Vec<(usize, Option<u64>)> {
        let sample = Sample {
            latent: vec![0.0],
            sigma: 1.0,
            divergence: 0.0,
            reward: 0.0,
            tokens: 1,
            response_characters: None,
            prompt: None,
            sequence: 0,
            request: "".into(),
            index: 0,
        };
        steps
            .iter()
            .filter_map(|&step| windows.add(step, sample.clone()))
            .map(|window| (window.samples.len(), window.last_step))
            .collect()
    }

    #[test]
    fn by_count_without_steps() {
        let mut windows = Windows::new(3, 2, 10);
        assert_eq!(lengths(&mut windows, &[None; 7]), [(3, None), (3, None)]);
        assert_eq!(windows.len(), 1);
    }

    #[test]
    fn by_step_and_stragglers_stay() {
        let mut windows = Windows::new(3, 2, 10);
        let steps = [1, 1, 1, 1, 2, 1, 2, 3].map(Some);
        assert_eq!(lengths(&mut windows, &steps), [(4, Some(1)), (3, Some(2))]);
    }

    #[test]
    fn small_steps_are_merged_and_large_ones_cut() {
        let mut windows = Windows::new(3, 4, 5);
        let steps = [1, 2, 2, 3, 4, 4, 4, 4, 4, 4].map(Some);
        assert_eq!(lengths(&mut windows, &steps), [(4, Some(3)), (5, Some(4))]);
    }
}
