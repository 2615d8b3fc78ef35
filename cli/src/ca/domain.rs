//! The mesh's trust domain, followed: the authority signs for the one that it started with and says so when the mesh names
//! another.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use source::kubernetes::MeshSource;
use spiffe::TrustDomain;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use super::settings::DomainSource;

/// Key of the MeshConfig in its ConfigMap.
const KEY: &str = "mesh";
/// How often a file is looked at, and the pause after a watch failed.
const LOOK: Duration = Duration::from_secs(1);

/// What the mesh says; `Err` says why that is not known.
pub(super) type Said = Result<TrustDomain, String>;

/// Follows the trust domain, for ever. What cannot be read changes nothing once something was.
pub(super) async fn follow(
    source: DomainSource,
    client: Client,
    said: watch::Sender<Said>,
) -> std::convert::Infallible {
    match source {
        DomainSource::Fixed(domain) => {
            let _ = said.send_replace(Ok(domain));
            std::future::pending().await
        }
        DomainSource::Mesh(MeshSource::File(path)) => loop {
            tell(&said, from_file(&path));
            tokio::time::sleep(LOOK).await;
        },
        DomainSource::Mesh(MeshSource::ConfigMap { namespace, name }) => {
            let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
            let mut maps = pin!(watch_object(maps, &name));
            loop {
                match maps.next().await {
                    Some(Ok(map)) => {
                        let text = map.and_then(|map| map.data).and_then(|mut data| data.remove(KEY));
                        let read = domain(&text.unwrap_or_default());
                        tell(&said, read.map_err(|why| format!("ConfigMap {namespace}/{name}: {why}")));
                    }
                    Some(Err(error)) => {
                        tell(&said, Err(format!("ConfigMap {namespace}/{name} cannot be watched: {error}")));
                        tokio::time::sleep(LOOK).await;
                    }
                    // The stream has no end.
                    None => std::future::pending().await,
                }
            }
        }
    }
}

fn tell(said: &watch::Sender<Said>, news: Said) {
    said.send_if_modified(|last| {
        let worse = last.is_ok() && news.is_err();
        if worse || *last == news {
            return false;
        }
        *last = news;
        true
    });
}

fn from_file(path: &Path) -> Said {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    domain(&text).map_err(|why| format!("{}: {why}", path.display()))
}

fn domain(text: &str) -> Said {
    let (mesh, _) = crds::mesh_config::read(text).map_err(|findings| {
        findings.first().map_or_else(|| "cannot be read".to_owned(), ToString::to_string)
    })?;
    mesh.trust_domain.parse().map_err(|error| format!("trustDomain: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_does_not_replace_what_was() {
        let said = watch::Sender::new(Err("not yet".to_owned()));
        tell(&said, Err("broken".to_owned()));
        assert_eq!(*said.borrow(), Err("broken".to_owned()));
        tell(&said, domain("trustDomain: example.org"));
        tell(&said, domain("trustDomain: ["));
        assert_eq!(*said.borrow(), Ok("example.org".parse().unwrap()));
        tell(&said, domain(""));
        assert_eq!(*said.borrow(), Ok("cluster.local".parse().unwrap()));
    }
}
