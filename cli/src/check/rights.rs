//! Rights in the API server.
use super::report::Group;
use crate::cluster::Cluster;
pub(super) async fn check(_: &Cluster) -> Group {
    Group::new("countersign-rights")
}
pub(super) async fn before(_: &Cluster) -> Group {
    Group::new("pre-rights")
}
