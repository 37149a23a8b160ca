//! Heads for models that have none.

mod init_head;

pub use init_head::init_head;
pub(super) use init_head::{HEAD_KEYS, is_buffer, name_type, other_keys, text_files};
