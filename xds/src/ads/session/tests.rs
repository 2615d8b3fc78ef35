//! Transcripts (`> request`, `< response`, `= event`) and a client model under random interleavings.

mod model;
mod slots;
mod transcript;
mod waiting;
