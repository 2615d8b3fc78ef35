//! Writing objects as a user, a kubelet and the endpoint controller would.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use anyhow::{Context, Result};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Kube;

/// How a kind is addressed.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    resource: ApiResource,
    namespaced: bool,
}

/// Everything the lab writes has this field manager.
const MANAGER: &str = "lab";

impl Kube {
    /// Server-side apply of every document, forced. A `status` is written through the status subresource.
    ///
    /// # Errors
    /// What the API server refused, naming the object.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        for document in documents(yaml)? {
            self.put(document).await?;
        }
        Ok(())
    }

    /// As [`Kube::apply`], for one object; what the API server answered.
    ///
    /// # Errors
    /// What the API server refused, naming the object.
    pub async fn put(&self, mut object: Value) -> Result<DynamicObject> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?.to_owned();
        let what = format!("{} {name}", object["kind"]);
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        let api = self.api_of(&object).await?;
        let params = PatchParams::apply(MANAGER).force();
        let mut written = api.patch(&name, &params, &Patch::Apply(&object)).await.context(what.clone())?;
        if let Some(status) = status {
            let patch = Patch::Merge(json!({ "status": status }));
            written = api.patch_status(&name, &PatchParams::default(), &patch).await.context(what)?;
        }
        Ok(written)
    }

    /// Deletes every object that is named in `yaml`, at once (grace period 0); those that are not there are no error.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn delete(&self, yaml: &str) -> Result<()> {
        for object in documents(yaml)? {
            let name = object["metadata"]["name"].as_str().context("an object without a name")?;
            let api = self.api_of(&object).await?;
            let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            match api.delete(name, &params).await {
                Err(error) if !missing(&error) => return Err(error).context(name.to_owned()),
                _ => {}
            }
        }
        Ok(())
    }

    /// An object: `get("security.istio.io/v1", "AuthorizationPolicy", "default", "a")`. `None` if there is none.
    ///
    /// # Errors
    /// Anything but 404.
    pub async fn get(&self, api: &str, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let api = self.api(api, kind, namespace).await?;
        match api.get(name).await {
            Ok(object) => Ok(Some(serde_json::to_value(object)?)),
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The objects of a kind in a namespace.
    ///
    /// # Errors
    /// As the API server does.
    pub async fn api(&self, api_version: &str, kind: &str, namespace: &str) -> Result<Api<DynamicObject>> {
        self.api_of(&json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace}}))
            .await
    }

    async fn api_of(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let field = |name: &str| object[name].as_str().with_context(|| format!("an object without {name}"));
        let (api, kind) = (field("apiVersion")?, field("kind")?);
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let known = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&gvk).cloned();
        let kind = match known {
            Some(kind) => kind,
            None => {
                let (resource, can) = pinned_kind(&self.client, &gvk).await.context(format!("{gvk:?}"))?;
                let kind = Kind { resource, namespaced: can.scope == Scope::Namespaced };
                self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(gvk, kind.clone());
                kind
            }
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        Ok(match kind.namespaced {
            true => Api::namespaced_with(self.client.clone(), namespace, &kind.resource),
            false => Api::all_with(self.client.clone(), &kind.resource),
        })
    }

    /// A namespace, if it is not there yet.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await?;
        Ok(())
    }

    /// A namespace that no other test has, beginning with `name`.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn fresh_namespace(&self, name: &str) -> Result<String> {
        static USED: AtomicU32 = AtomicU32::new(1);
        let name = format!("{name}-{}", USED.fetch_add(1, Ordering::Relaxed));
        self.namespace(&name).await?;
        Ok(name)
    }

    /// A service account, if it is not there yet; its UID.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<String> {
        let metadata = json!({"name": name, "namespace": namespace});
        uid(self.put(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})).await?)
    }

    /// A running, ready pod (again) with its namespace and service account; its UID.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn pod(
        &self,
        namespace: &str,
        name: &str,
        account: &str,
        labels: &[(&str, &str)],
        ip: &str,
        ports: &[u16],
    ) -> Result<String> {
        self.namespace(namespace).await?;
        self.service_account(namespace, account).await?;
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let ports: Vec<_> =
            ports.iter().map(|port| json!({"containerPort": port, "protocol": "TCP"})).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "serviceAccountName": account, "nodeName": "node-0",
                "containers": [{"name": "app", "image": "app", "ports": ports}],
            },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        uid(self.put(pod).await?)
    }

    /// Deletes a pod at once, as a kubelet that has seen it end does.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let metadata = json!({"name": name, "namespace": namespace});
        self.delete(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}).to_string()).await
    }

    /// A Service that selects `app: NAME`, and its EndpointSlice. `ports`: (name, Service port, container port);
    /// `pods`: (pod, its UID, its address).
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn service(
        &self,
        namespace: &str,
        name: &str,
        ports: &[(&str, u16, u16)],
        pods: &[(&str, &str, &str)],
    ) -> Result<()> {
        let metadata = json!({"name": name, "namespace": namespace});
        let of_service: Vec<_> = ports
            .iter()
            .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"}))
            .collect();
        let spec = json!({"selector": {"app": name}, "ports": of_service});
        self.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})).await?;
        let of_slice: Vec<_> = ports
            .iter()
            .map(|(name, _, target)| json!({"name": name, "port": target, "protocol": "TCP"}))
            .collect();
        let endpoints: Vec<_> = pods
            .iter()
            .map(|(pod, uid, ip)| {
                json!({
                    "addresses": [ip], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace, "uid": uid},
                })
            })
            .collect();
        self.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-lab"), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4", "ports": of_slice, "endpoints": endpoints,
        }))
        .await?;
        Ok(())
    }
}

impl Kube {
    /// A thousand running pods in ten namespaces with ten Services each, and a thousand policies for them.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn thousand(&self) -> Result<()> {
        let pool = Arc::new(Semaphore::new(16));
        let mut tasks = JoinSet::new();
        for i in 0..10_usize {
            self.namespace(&format!("load-{i}")).await?;
            self.service_account(&format!("load-{i}"), "load").await?;
        }
        for object in (0..1000).flat_map(load) {
            let (api, pool) = (self.api_of(&object).await?, pool.clone());
            tasks.spawn(async move {
                let _permit = pool.acquire().await?;
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await?;
                if !object["status"].is_null() {
                    let status = Patch::Merge(json!({"status": object["status"]}));
                    api.patch_status(&name, &PatchParams::default(), &status).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }
}

/// Pod number `i` and a policy; every hundredth with the Services of its namespace.
fn load(i: usize) -> Vec<Value> {
    let (namespace, app) = (format!("load-{}", i % 10), format!("app-{}", i / 10 % 10));
    let ip = format!("10.200.{}.{}", i / 250, i % 250 + 1);
    let metadata = |name: String| json!({"name": name, "namespace": namespace, "labels": {"app": app}});
    let mut objects = vec![
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata(format!("pod-{i}")),
            "spec": {
                "serviceAccountName": "load", "nodeName": "node-0",
                "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}],
            },
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }),
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata(format!("policy-{i}")),
            "spec": {"selector": {"matchLabels": {"app": app}}, "action": "DENY",
                     "rules": [{"to": [{"operation": {"paths": [format!("/denied/{i}")]}}]}]},
        }),
    ];
    if i / 10 % 10 == i / 100 {
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(app.clone()),
            "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }));
    }
    objects
}

fn documents(yaml: &str) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let value = Value::deserialize(document)?;
        if !value.is_null() {
            all.push(value);
        }
    }
    Ok(all)
}

fn missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn uid(object: DynamicObject) -> Result<String> {
    object.metadata.uid.context("the API server gave no UID")
}
