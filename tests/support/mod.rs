//! Golden values, a server as a child process, folders: shared by both test binaries.

// Each binary uses a part of it.
#![allow(dead_code)]

#[cfg(feature = "judge")]
pub(crate) mod chat_server;
pub(crate) mod folders;
pub(crate) mod golden;
pub(crate) mod recipe;
pub(crate) mod server;
