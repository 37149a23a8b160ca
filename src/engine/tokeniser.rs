//! Token ids off the event loop.

use std::ops::Deref;
use std::sync::Arc;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use tokio::sync::oneshot;

use crate::checkpoint::{Encoding, Input, TextEncoder};

/// Bytes of text that are tokenised where they arrive: less time than a thread takes to wake up and
/// answer.
const INLINE_BYTES: usize = 512;

/// A [`TextEncoder`] with threads of its own, so that long texts hold up neither the event loop nor the
/// device.
#[derive(Debug)]
pub struct Tokeniser {
    encoder: Arc<TextEncoder>,
    pool: ThreadPool,
}

impl Deref for Tokeniser {
    type Target = TextEncoder;

    fn deref(&self) -> &TextEncoder {
        &self.encoder
    }
}

impl Tokeniser {
    /// A pool of `threads` threads, or of one for each processor where `threads` is 0.
    ///
    /// # Errors
    /// Where the operating system refuses the threads.
    pub fn new(encoder: TextEncoder, threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let name = |index| format!("tokenise-{index}");
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build()?;
        Ok(Self { encoder: Arc::new(encoder), pool })
    }

    /// Applies `encode` to a request's inputs, in their order.
    ///
    /// # Errors
    /// Where `encode` panics; what it refuses fails alone.
    pub async fn encode_all<E, F>(
        &self,
        inputs: Vec<Result<Input, E>>,
        encode: F,
    ) -> Result<Vec<Result<Encoding, E>>, TokeniserPanic>
    where
        E: Send + 'static,
        F: Fn(&TextEncoder, Result<Input, E>) -> Result<Encoding, E> + Send + Sync + 'static,
    {
        let encoder = self.encoder.clone();
        let encode = move |input| encode(&encoder, input);
        if inputs.iter().flatten().map(text_bytes).sum::<usize>() <= INLINE_BYTES {
            return Ok(inputs.into_iter().map(encode).collect());
        }
        let (answer, answered) = oneshot::channel();
        // Whoever has left by the time its turn comes needs no tokens. A panic drops the sender.
        self.pool.spawn(move || {
            if !answer.is_closed() {
                let work = || inputs.into_par_iter().map(encode).collect();
                if let Ok(encodings) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                {
                    let _ = answer.send(encodings);
                }
            }
        });
        answered.await.map_err(|_| TokeniserPanic)
    }
}

/// Tokenising a request panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tokenising failed; the log says why")]
pub struct TokeniserPanic;

/// Bytes that are to be tokenised.
fn text_bytes(input: &Input) -> usize {
    match input {
        Input::Messages(messages) => messages.iter().map(|m| m.content.len()).sum(),
        Input::Text(text) | Input::ExactText(text) => text.len(),
        Input::Tokens(_) => 0,
    }
}
