//! The load driver: thousands of ADS streams as sidecars open them, on a mesh that it makes, with changes whose way into
//! every proxy is timed and counted. Works against any ADS server. What it measures is what a proxy receives; that an Envoy
//! does what it was told is shown elsewhere.

pub mod change;
pub mod connect;
pub mod fleet;
pub mod floor;
pub mod measure;
pub mod mesh;
pub mod plane;
pub mod proxy;
pub mod report;
pub mod run;
pub mod scenario;
pub mod store;
pub mod tls;
pub mod wire;
