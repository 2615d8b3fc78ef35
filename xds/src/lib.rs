//! Translation and serving: effective policies and the mesh become Envoy resources (`build`), and sessions carry them
//! to proxies (`ads`). Knows neither YAML nor Kubernetes, decides nothing about policy.

pub mod ads;
pub mod build;
pub mod resource;
mod table;

pub use resource::{Layers, Resource, ResourceType, Snapshot};
pub use table::Table;
