//! From files to encoded preference pairs.

pub(super) mod answers;
mod data_file;
mod dropped;
mod origin;
mod pairs;
mod parquet;
mod responses;
mod row;
mod rows;

pub(crate) use answers::{ANSWER_FORMS, answer};
pub(super) use answers::{PROMPT_COLUMNS, PROMPT_FORMS, prompt};
pub(crate) use data_file::{DataFile, data_files};
pub(super) use dropped::{DROPPED_FILE, dropped_file};
pub use dropped::{Dropped, LeftOut, Reason, name_left_out};
pub use origin::Origin;
pub(crate) use pairs::read_rows;
pub use pairs::{BadLines, EncodedPair, Pair, PairLimits, Split, encode_pairs, read_pairs};
pub(crate) use responses::{RESPONSE_COLUMNS, Response, responses};
