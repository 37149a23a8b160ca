//! The command lines of both programs.

mod command_line;
mod verify;
