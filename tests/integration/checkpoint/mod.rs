//! What is read and written as a checkpoint.

mod bad_checkpoints;
mod chat_templates;
mod ensemble;
mod export;
mod gguf;
mod heads;
mod hub;
mod init_head;
mod merge;
