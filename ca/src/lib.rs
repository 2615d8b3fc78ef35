//! The certificate authority: signing, keys and their storage, joining, and the control plane's own identity.
//!
//! [`Issuer`] decides and signs without I/O; [`Enrollment`] and [`Certificates`] are thin gRPC services over it; the
//! registry of workloads is somebody else's, behind [`Registry`]. In a Kubernetes cluster, [`cluster`] has the same for
//! service-account tokens, with keys in Secrets. No policy, and no word of another process is believed: callers prove
//! themselves by certificate or token to this process (design decision 9).

mod certificates;
pub mod cluster;
mod counters;
mod desk;
mod enrollment;
mod error;
mod files;
mod issuer;
mod join;
mod relay;
mod server_identity;
mod service;
mod storage;
mod workload;

pub use certificates::Certificates;
pub use counters::Counters;
pub use enrollment::Enrollment;
pub use error::Error;
pub use issuer::{Issuance, Issuer, Lifetimes};
pub use join::{DEFAULT_TTL, JoinTokens, MAX_TTL, TokenError};
pub use relay::{Relay, RelayCounters};
pub use server_identity::ServerIdentity;
pub use service::{Ca, MAX_MESSAGE_BYTES, NotReady, Registry};
pub use storage::{ROOT_LIFETIME, Storage, StorageError};
pub use workload::{WorkloadName, WorkloadNameError};
