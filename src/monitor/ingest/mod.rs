//! The monitor's threads: answers become windows, windows evaluations.

mod evaluator;
mod handle;
mod resume;
mod run;
mod window;
mod worker;

pub use handle::Monitor;
pub use run::{Latest, RunView};
pub use window::Window;
