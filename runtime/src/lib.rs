//! What every process shares: logging, metrics, the monitoring HTTP server, orderly shutdown and the TLS provider.
//! Knows nothing of policy, Envoy or identity.

pub mod audit;
pub mod http;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod shutdown;
pub mod tls;
pub mod version;

pub use metrics::Metrics;
pub use shutdown::{Signals, Tasks};
pub use version::Version;
