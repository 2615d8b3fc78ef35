//! The certificate authority of a Kubernetes cluster: callers prove themselves by service-account token (this process's own
//! TokenReview) or certificate, keys live in Secrets, and the roots are in a ConfigMap of every namespace.
//!
//! What the controller says is worth nothing here: it may relay a request, but the identity comes from the bearer token of
//! who asked for it. Does not watch pods: it asks for the one that matters.

mod follow;
mod keys;
mod material;
mod pods;
pub mod rights;
mod roots;
mod rotation;
mod service;

pub use keys::{Keys, KeysError, PLUGGED, ROTATE, SECRET};
pub use material::MaterialError;
pub use pods::{Asking, KubePods, NoPods, PodFacts, Pods};
pub use roots::{CONFIG_MAP, KEY, RootCounters, Roots};
pub use rotation::Timing;
pub use service::{ClusterCertificates, Names, RELAYED_FOR};
