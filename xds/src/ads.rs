//! Serving: what a proxy is told, and when. [`session`] is a state machine without I/O, [`server`] a thin tonic layer
//! around it. Chooses nothing about content: snapshots come from whoever implements [`server::Snapshots`].
//!
//! # Order
//! Types go out in the order of [`crate::ResourceType`]: clusters and their endpoints, then extension configs (policy), then the
//! listeners and routes that use them; clusters are only removed once nothing else is outstanding. Types do not wait for
//! each other's acknowledgement: a change that narrows access must not wait behind one that widens it. Within the
//! policy slots a change of several is sent in acknowledged steps, see [`session`].

pub mod facts;
pub mod node;
pub mod server;
pub mod session;
mod wire;

pub use session::{Event, Response, Session, SessionError};
