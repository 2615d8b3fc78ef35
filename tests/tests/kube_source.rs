//! The Kubernetes source against a real API server: what it tells at first, what follows, and that nothing but a deletion
//! ever takes a policy away. It serves nobody: see `kube_controller` for what Envoys make of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use crds::{Kind, Object};
use nix::sys::signal::Signal;
use serde_json::json;
use source::kubernetes::{Counters, MeshSource, Scope, Settings};
use source::{Change, UnimplementedObjects, Version};
use tests::here;
use tests::lab::kube::{self, Kube, Through};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// How long anything may take that has no limit of its own.
const LONG: Duration = Duration::from_secs(60);

/// Everything a source has told, put together.
struct Told {
    changes: mpsc::Receiver<Change>,
    counters: Arc<Counters>,
    objects: BTreeMap<String, Told1>,
    mesh: Option<mesh::MeshConfig>,
    frozen: Option<String>,
    synced: bool,
    unreadable: BTreeMap<String, (String, bool)>,
    unimplemented: BTreeMap<String, UnimplementedObjects>,
    deleted: Vec<String>,
    _task: Ends,
}

/// One object as told.
#[derive(Debug)]
struct Told1 {
    object: Option<Object>,
    version: Option<Version>,
    errors: Vec<String>,
    kept: bool,
}

struct Ends(tokio::task::JoinHandle<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Told {
    async fn of(kube: &Kube) -> Result<Self> {
        Self::through(&kube.admin_kubeconfig()?, "default").await
    }

    async fn through(kubeconfig: &std::path::Path, revision: &str) -> Result<Self> {
        runtime::tls::install_provider();
        let client = source::kubernetes::client(Some(kubeconfig)).await?;
        let mesh = MeshSource::ConfigMap { namespace: "istio-system".into(), name: "istio".into() };
        let counters = Arc::new(Counters::default());
        let settings = Settings { client, mesh, revision: revision.into(), counters: counters.clone() };
        let (sender, changes) = mpsc::channel(4096);
        let task = Ends(tokio::spawn(source::kubernetes::watch(settings, sender)));
        Ok(Self {
            changes,
            counters,
            objects: BTreeMap::new(),
            mesh: None,
            frozen: None,
            synced: false,
            unreadable: BTreeMap::new(),
            unimplemented: BTreeMap::new(),
            deleted: Vec::new(),
            _task: task,
        })
    }

    /// The same, with its first list.
    async fn synced(kube: &Kube) -> Result<Self> {
        let mut told = Self::of(kube).await?;
        told.until("the first list", |told| told.synced).await?;
        Ok(told)
    }

    fn take(&mut self, change: Change) {
        let texts = |findings: Vec<crds::Finding>| {
            let errors = findings.into_iter().filter(|f| f.severity == crds::Severity::Error);
            errors.map(|finding| finding.to_string()).collect()
        };
        match change {
            Change::Apply { object, origin, version, findings } => {
                assert_eq!(origin, "kubernetes");
                let told = Told1 { object: Some(*object), version, errors: texts(findings), kept: false };
                self.objects.insert(told.object.as_ref().expect("just set").object_ref().to_string(), told);
            }
            Change::Kept { object, origin: _, version, findings } => {
                let before = self.objects.remove(&object.to_string()).and_then(|told| told.object);
                let told = Told1 { object: before, version, errors: texts(findings), kept: true };
                self.objects.insert(object.to_string(), told);
            }
            Change::Delete(object) => {
                self.objects.remove(&object.to_string());
                self.deleted.push(object.to_string());
            }
            Change::Unreadable { origin, finding: Some(finding), blocks_ready } => {
                self.unreadable.insert(origin, (finding.to_string(), blocks_ready));
            }
            Change::Unreadable { origin, finding: None, blocks_ready: _ } => {
                self.unreadable.remove(&origin);
            }
            Change::Mesh(mesh) => self.mesh = Some(*mesh),
            Change::Synced => self.synced = true,
            Change::Frozen(reason) => self.frozen = reason,
            Change::Unimplemented(objects) => {
                self.unimplemented.insert(objects.kind.to_string(), objects);
            }
        }
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) -> Result<()> {
        self.within(LONG, what, is).await
    }

    async fn within(&mut self, time: Duration, what: &str, is: impl Fn(&Self) -> bool) -> Result<()> {
        let until = Instant::now() + time;
        while !is(self) {
            match timeout_at(until, self.changes.recv()).await {
                Ok(Some(change)) => self.take(change),
                Ok(None) => bail!("the source ended"),
                Err(_) => bail!(
                    "not within {time:?}: {what}; synced {}, frozen {:?}, {:?}, {:?}, deleted {:?}",
                    self.synced,
                    self.frozen,
                    self.objects.keys().collect::<Vec<_>>(),
                    self.unreadable,
                    self.deleted,
                ),
            }
        }
        Ok(())
    }

    fn has(&self, object: &str) -> bool {
        self.objects.contains_key(object)
    }

    fn kept(&self, object: &str) -> bool {
        self.objects.get(object).is_some_and(|told| told.kept)
    }

    fn of_kind(&self, kind: Kind) -> usize {
        self.objects.keys().filter(|name| name.starts_with(&format!("{kind} "))).count()
    }
}

fn deny(name: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec: \
         {{action: DENY, rules: [{{}}]}}\n---\n"
    )
}

fn name_of(name: &str) -> String {
    format!("AuthorizationPolicy default/{name}")
}

const STRICT: &str = "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: \
                      default}\nspec: {mtls: {mode: STRICT}}\n";
const MESH: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \
                    'trustDomain: example.com'}\n";

/// Everything there is comes before `Synced`, with UIDs, generations and managers; then what changes.
#[test]
fn the_first_list_and_what_changes() {
    kube::own(here!(), async |kube| {
        kube.pod("shop", "web-1", "web", &[("app", "web")], "10.1.2.3", &[8080]).await?;
        kube.service("shop", "web", &[("http", 80, 8080)], &[("web-1", "uid", "10.1.2.3")]).await?;
        kube.apply(&format!("{}{STRICT}", deny("a"))).await?;
        let mut told = Told::synced(kube).await?;
        for name in [
            "AuthorizationPolicy default/a",
            "PeerAuthentication default/strict",
            "Namespace shop",
            "Pod shop/web-1",
            "Service shop/web",
            "ServiceAccount shop/web",
            "EndpointSlice shop/web-lab",
        ] {
            ensure!(told.has(name), "{name} is missing: {:?}", told.objects.keys());
        }
        ensure!(told.mesh == Some(mesh::MeshConfig::default()), "{:?}", told.mesh);
        let pod = match &told.objects["Pod shop/web-1"].object {
            Some(Object::Workload(pod)) => pod.clone(),
            other => bail!("{other:?}"),
        };
        ensure!(pod.ready && pod.addresses.len() == 1 && &*pod.service_account == "web", "{pod:?}");
        let read =
            kube.get("security.istio.io/v1", "AuthorizationPolicy", "default", "a").await?.context("a")?;
        let version = told.objects[&name_of("a")].version.clone().context("a version")?;
        ensure!(*version.uid == *read["metadata"]["uid"].as_str().unwrap(), "{version:?}");
        ensure!(version.generation == 1 && version.manager.is_some(), "{version:?}");

        kube.apply(&deny("b")).await?;
        told.until("b", |told| told.has(&name_of("b"))).await?;
        kube.kubectl([
            "patch",
            "ap",
            "b",
            "--type=merge",
            "-p",
            r#"{"spec":{"action":"ALLOW"}}"#,
            "--field-manager=ann",
        ])?;
        let by_ann = |told: &Told| {
            let version = told.objects[&name_of("b")].version.as_ref();
            version.is_some_and(|v| v.generation == 2 && v.manager.as_deref() == Some("ann"))
        };
        told.until("b by ann", by_ann).await?;
        kube.delete(&deny("a")).await?;
        told.until("a is gone", |told| !told.has(&name_of("a"))).await?;
        kube.delete_pod("shop", "web-1").await?;
        told.until("web-1 is gone", |told| !told.has("Pod shop/web-1")).await?;
        kube.apply(MESH).await?;
        let domain = |told: &Told| told.mesh.as_ref().is_some_and(|m| &*m.trust_domain == "example.com");
        told.until("the mesh configuration", domain).await?;
        kube.delete(MESH).await?;
        let kept = |told: &Told| told.unreadable.get("ConfigMap istio-system/istio").is_some_and(|r| !r.1);
        told.until("the report that it was deleted", kept).await?;
        ensure!(domain(&told), "{:?}", told.mesh);
        Ok(())
    });
}

/// What no webhook saw: its closed value, or the last good version; neighbours are unharmed.
#[test]
fn what_cannot_be_read_is_closed_or_kept() {
    kube::own(here!(), async |kube| {
        let bad = |name: &str| {
            deny(name).replace("rules: [{}]", "rules: [{from: [{source: {ipBlocks: [nowhere]}}]}]")
        };
        kube.apply(&format!("{}{}", bad("bad"), deny("good"))).await?;
        let mut told = Told::synced(kube).await?;
        let closed = &told.objects[&name_of("bad")];
        ensure!(!closed.kept && !closed.errors.is_empty() && closed.object.is_some(), "{closed:?}");
        ensure!(told.objects[&name_of("good")].errors.is_empty(), "{:?}", told.objects);
        kube.apply(&bad("good")).await?;
        told.until("good is kept", |told| told.kept(&name_of("good"))).await?;
        kube.apply(&deny("good")).await?;
        told.until("good is good", |told| !told.kept(&name_of("good"))).await?;
        Ok(())
    });
}

/// The API server is killed and comes back: what was missed follows, what was deleted meanwhile goes, the rest stays.
#[test]
fn an_outage_takes_nothing_away() {
    kube::own(here!(), async |kube| {
        kube.apply(&format!("{}{}{STRICT}", deny("a"), deny("b"))).await?;
        let mut told = Told::synced(kube).await?;
        for compact in [false, true] {
            // A second watcher's changes are what the first one misses.
            let gate = kube.gate().await?;
            let path = kube.kubeconfig_at("gated", &gate.url(), kube.admin_token())?;
            let mut cut = Told::through(&path, "default").await?;
            cut.until("the first list", |told| told.synced).await?;
            gate.set(Through::Closed);
            cut.until("frozen", |told| told.frozen.is_some()).await?;
            kube.delete(&deny("a")).await?;
            kube.apply(&deny("c")).await?;
            if compact {
                kube.compact().await?;
                kube.stop()?;
                kube.start().await?;
            }
            ensure!(cut.has(&name_of("a")) && cut.deleted.is_empty(), "{:?}", cut.deleted);
            gate.set(Through::Everything);
            cut.within(Duration::from_secs(5), "what was missed", |told| {
                !told.has(&name_of("a")) && told.has(&name_of("c"))
            })
            .await?;
            cut.within(Duration::from_secs(5), "back", |told| told.frozen.is_none()).await?;
            ensure!(cut.deleted == [name_of("a")], "{:?}", cut.deleted);
            ensure!(!compact || cut.counters.relists.get() > 0, "nothing was listed again");
            kube.apply(&deny("a")).await?;
            kube.delete(&deny("c")).await?;
        }
        kube.stop()?;
        let named = |told: &Told| {
            told.frozen.as_ref().is_some_and(|reason| reason.starts_with("the API server cannot be watched"))
        };
        told.until("frozen", named).await?;
        kube.start().await?;
        told.within(Duration::from_secs(5), "back", |told| told.frozen.is_none()).await?;
        ensure!(told.has(&name_of("a")) && told.has(&name_of("b")), "{:?}", told.deleted);
        ensure!(told.has("PeerAuthentication default/strict"), "{:?}", told.deleted);
        Ok(())
    });
}

/// A server that says nothing any more is noticed, and one that goes on is followed again.
#[test]
fn silence_is_noticed() {
    kube::own(here!(), async |kube| {
        kube.apply(&deny("a")).await?;
        let mut told = Told::synced(kube).await?;
        kube.signal(Signal::SIGSTOP)?;
        let noticed = told.within(Duration::from_secs(30), "frozen", |told| told.frozen.is_some()).await;
        kube.signal(Signal::SIGCONT)?;
        noticed?;
        kube.apply(&deny("b")).await?;
        told.within(Duration::from_secs(5), "b", |told| told.has(&name_of("b"))).await?;
        told.until("back", |told| told.frozen.is_none()).await?;
        ensure!(told.deleted.is_empty(), "{:?}", told.deleted);
        Ok(())
    });
}

/// Definitions that are not there are not "no policies"; those that go take nothing along; what comes back replaces.
#[test]
fn definitions_come_and_go() {
    kube::own(here!(), async |kube| {
        kube.uninstall_crds().await?;
        let mut told = Told::of(kube).await?;
        let named = |told: &Told| {
            let reason = told.frozen.as_deref().unwrap_or_default();
            ["authorizationpolicies", "peerauthentications", "requestauthentications"]
                .iter()
                .all(|kind| reason.contains(&format!("{kind}.security.istio.io is not installed")))
        };
        told.until("what is missing is named", named).await?;
        kube.install_crds().await?;
        told.until("the first list", |told| told.synced && told.frozen.is_none()).await?;
        kube.apply(&format!("{}{}{STRICT}", deny("a"), deny("b"))).await?;
        told.until("policies", |told| {
            told.has(&name_of("b")) && told.has("PeerAuthentication default/strict")
        })
        .await?;

        let seen = told.deleted.len();
        kube.uninstall_crds().await?;
        told.until("frozen", named).await?;
        ensure!(told.deleted.len() == seen, "{:?}", told.deleted);
        ensure!(
            told.kept(&name_of("a")) && told.kept("PeerAuthentication default/strict"),
            "{:?}",
            told.objects
        );

        kube.install_crds().await?;
        told.until("thawed", |told| told.frozen.is_none()).await?;
        ensure!(told.deleted.len() == seen && told.kept(&name_of("a")), "{:?}", told.deleted);
        ensure!(told.counters.orphans.get() == 3, "{}", told.counters.orphans.get());
        kube.apply(&deny("a")).await?;
        told.until("a is as it was", |told| !told.kept(&name_of("a"))).await?;
        kube.delete(&deny("a")).await?;
        told.until("a is deleted", |told| !told.has(&name_of("a"))).await?;
        ensure!(told.kept(&name_of("b")), "{:?}", told.objects);
        Ok(())
    });
}

const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: \
                     default}\nspec: {address: 10.9.9.9, serviceAccount: vm}\n";

/// WorkloadEntries and their definition may come later; kinds without effect are counted.
#[test]
fn optional_kinds_appear_later() {
    kube::own(here!(), async |kube| {
        kube.kubectl(["delete", "crd", "workloadentries.networking.istio.io", "--ignore-not-found"])?;
        let mut told = Told::synced(kube).await?;
        ensure!(told.frozen.is_none(), "{:?}", told.frozen);
        kube.install_crds().await?;
        until_applied(kube, ENTRY).await?;
        told.until("the entry", |told| told.has("WorkloadEntry default/vm")).await?;
        kube.apply(FILTERS).await?;
        until_applied(kube, FILTER).await?;
        let counted = |count| {
            move |told: &Told| told.unimplemented.get("EnvoyFilter").is_some_and(|found| found.count == count)
        };
        told.until("the filter is counted", counted(1)).await?;
        ensure!(told.unimplemented["EnvoyFilter"].names == ["default/f"], "{:?}", told.unimplemented);
        kube.delete(FILTER).await?;
        told.until("it is not any more", counted(0)).await?;
        Ok(())
    });
}

const FILTER: &str =
    "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f, namespace: default}\n";
const FILTERS: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: envoyfilters.networking.istio.io}
spec:
  group: networking.istio.io
  scope: Namespaced
  names: {plural: envoyfilters, singular: envoyfilter, kind: EnvoyFilter, listKind: EnvoyFilterList}
  versions:
  - name: v1alpha3
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

/// A definition is served a moment after it was written.
async fn until_applied(kube: &Kube, yaml: &str) -> Result<()> {
    tests::lab::until("it is served", async || Ok(kube.apply(yaml).await.ok())).await
}

/// A right that is taken away freezes, and is named.
#[test]
fn a_missing_right_freezes() {
    kube::own(here!(), async |kube| {
        kube.apply(&format!("{}{FILTERS}", deny("a"))).await?;
        until_applied(kube, FILTER).await?;
        grant(kube, "nothing").await?;
        let kubeconfig = kube.kubeconfig_of("istio-system", "countersign").await?;
        let mut told = Told::through(&kubeconfig, "default").await?;
        told.until("the first list", |told| told.synced && told.frozen.is_none()).await?;
        told.until("the filter is counted", |told| told.unimplemented.contains_key("EnvoyFilter")).await?;
        grant(kube, "authorizationpolicies").await?;
        let named = |told: &Told| {
            let reason = told.frozen.as_deref().unwrap_or_default();
            reason.contains("AuthorizationPolicy cannot be watched: 403") && !reason.contains("Pod")
        };
        told.until("frozen", named).await?;
        ensure!(told.has(&name_of("a")) && told.deleted.is_empty(), "{:?}", told.deleted);
        kube.apply(&deny("b")).await?;
        grant(kube, "nothing").await?;
        told.until("back", |told| told.frozen.is_none() && told.has(&name_of("b"))).await?;
        Ok(())
    });
}

/// Exactly the rights of the controller, without those to `without`.
async fn grant(kube: &Kube, without: &str) -> Result<()> {
    let binding = json!({"apiGroup": "rbac.authorization.k8s.io", "name": "countersign"});
    let subjects = json!([{"kind": "ServiceAccount", "namespace": "istio-system", "name": "countersign"}]);
    for (scope, role) in [(Scope::Cluster, "ClusterRole"), (Scope::Namespace, "Role")] {
        let rights = source::kubernetes::rights();
        let rules = rights.iter().filter(|right| right.scope == scope).map(|right| {
            let resources = right.resources.iter().filter(|resource| **resource != without);
            let names = right.names.iter().map(|name| name.replace("{namespace}", "istio-system"));
            json!({
                "apiGroups": [right.api_group], "resources": resources.collect::<Vec<_>>(),
                "resourceNames": names.collect::<Vec<_>>(), "verbs": right.verbs,
            })
        });
        let rules: Vec<_> = rules.filter(|rule| rule["resources"] != json!([])).collect();
        let mut metadata = json!({"name": "countersign"});
        if scope == Scope::Namespace {
            metadata["namespace"] = "istio-system".into();
        }
        let api = "rbac.authorization.k8s.io/v1";
        kube.put(json!({"apiVersion": api, "kind": role, "metadata": metadata, "rules": rules})).await?;
        let mut reference = binding.clone();
        reference["kind"] = role.into();
        let kind = format!("{role}Binding");
        kube.put(json!({
            "apiVersion": api, "kind": kind, "metadata": metadata, "roleRef": reference, "subjects": subjects,
        }))
        .await?;
    }
    Ok(())
}

/// Another revision's objects are not there; the label decides at any time.
#[test]
fn revisions_keep_apart() {
    kube::own(here!(), async |kube| {
        let labelled =
            |rev: &str| deny("a").replace("name: a,", &format!("name: a, labels: {{istio.io/rev: {rev}}},"));
        kube.apply(&format!("{}{}", labelled("canary"), deny("b"))).await?;
        let mut told = Told::synced(kube).await?;
        ensure!(!told.has(&name_of("a")) && told.has(&name_of("b")), "{:?}", told.objects.keys());
        let mut canary = Told::through(&kube.admin_kubeconfig()?, "canary").await?;
        canary.until("the first list", |told| told.synced).await?;
        ensure!(canary.has(&name_of("a")), "{:?}", canary.objects.keys());
        kube.apply(&labelled("default")).await?;
        told.until("a is ours", |told| told.has(&name_of("a"))).await?;
        canary.until("a is not", |told| !told.has(&name_of("a"))).await?;
        kube.apply(&labelled("canary")).await?;
        told.until("a is not ours", |told| !told.has(&name_of("a"))).await?;
        Ok(())
    });
}

/// A mesh configuration that cannot be read never takes effect; at start it keeps from being ready.
#[test]
fn an_unreadable_mesh_configuration() {
    kube::own(here!(), async |kube| {
        kube.apply(&MESH.replace("trustDomain: example.com", "trustDomain: [")).await?;
        let mut told = Told::of(kube).await?;
        let blocks = |told: &Told| told.unreadable.get("ConfigMap istio-system/istio").is_some_and(|r| r.1);
        told.until("it blocks", blocks).await?;
        ensure!(!told.synced && told.mesh.is_none());
        kube.apply(MESH).await?;
        told.until("the first list", |told| told.synced && told.unreadable.is_empty()).await?;
        kube.apply(&MESH.replace("trustDomain: example.com", "trustDomain: [")).await?;
        told.until("reported", |told| told.unreadable.values().any(|(_, blocks)| !blocks)).await?;
        let mesh = told.mesh.as_ref().context("a mesh configuration")?;
        ensure!(&*mesh.trust_domain == "example.com", "{mesh:?}");
        Ok(())
    });
}

/// A definition that is uninstalled and installed again while nobody looks: the objects that went with it stay.
#[test]
fn a_definition_that_was_replaced_unseen() {
    kube::own(here!(), async |kube| {
        let gate = kube.gate().await?;
        let path = kube.kubeconfig_at("gated", &gate.url(), kube.admin_token())?;
        kube.apply(&format!("{}{}", deny("a"), deny("b"))).await?;
        let mut told = Told::through(&path, "default").await?;
        told.until("the first list", |told| told.synced).await?;
        for compact in [false, true] {
            gate.set(Through::Closed);
            told.until("frozen", |told| told.frozen.is_some()).await?;
            kube.uninstall_crds().await?;
            let gone = async || {
                let crds = kube.kubectl(["get", "crd", "-o", "name"])?;
                Ok((!crds.contains("security.istio.io")).then_some(()))
            };
            tests::lab::until("the definitions are gone", gone).await?;
            kube.install_crds().await?;
            kube.apply(&deny("b")).await?;
            if compact {
                kube.compact().await?;
                kube.stop()?;
                kube.start().await?;
            }
            gate.set(Through::Everything);
            told.until("back", |told| told.frozen.is_none()).await?;
            let b = kube
                .get("security.istio.io/v1", "AuthorizationPolicy", "default", "b")
                .await?
                .context("b")?;
            let renewed = |told: &Told| {
                let version = told.objects.get(&name_of("b")).and_then(|told| told.version.as_ref());
                version.is_some_and(|version| b["metadata"]["uid"] == *version.uid)
            };
            let there = |told: &Told| told.kept(&name_of("a")) && !told.kept(&name_of("b")) && renewed(told);
            told.until("a is kept, b is the new one", there).await?;
            ensure!(told.deleted.is_empty(), "{:?}", told.deleted);
        }
        // A deletion in the moment in which the new definition is being found out about cannot be told from one by the old
        // one: then it takes another creation and deletion.
        for _ in 0..10 {
            kube.apply(&deny("b")).await?;
            told.until("b is as it was", |told| told.has(&name_of("b")) && !told.kept(&name_of("b"))).await?;
            kube.delete(&deny("b")).await?;
            let gone = |told: &Told| !told.has(&name_of("b"));
            if told.within(Duration::from_secs(5), "b is deleted", gone).await.is_ok() {
                return Ok(());
            }
        }
        bail!("b is not deleted: {:?}", told.objects)
    });
}

/// Many deletions at once are all taken over, also while another client keeps writing.
#[test]
fn many_objects_go_at_once() {
    kube::own(here!(), async |kube| {
        let all: String = (0..200).map(|i| deny(&format!("p-{i}"))).collect();
        kube.apply(&all).await?;
        let mut told = Told::synced(kube).await?;
        ensure!(told.of_kind(Kind::AuthorizationPolicy) == 200, "{:?}", told.objects.keys());
        kube.kubectl(["delete", "ap", "--all", "-n", "default", "--wait=false"])?;
        kube.apply(&deny("last")).await?;
        let done = |told: &Told| told.of_kind(Kind::AuthorizationPolicy) == 1 && told.has(&name_of("last"));
        told.until("all but the last are gone", done).await?;
        ensure!(told.counters.relists.get() == 0 && told.frozen.is_none());
        Ok(())
    });
}

/// A partition, in which nothing is closed and nothing comes, is noticed and ends.
#[test]
fn a_partition_is_noticed() {
    kube::own(here!(), async |kube| {
        let gate = kube.gate().await?;
        let path = kube.kubeconfig_at("gated", &gate.url(), kube.admin_token())?;
        kube.apply(&deny("a")).await?;
        let mut told = Told::through(&path, "default").await?;
        told.until("the first list", |told| told.synced).await?;
        gate.set(Through::Silent);
        kube.delete(&deny("a")).await?;
        told.within(Duration::from_secs(30), "frozen", |told| told.frozen.is_some()).await?;
        ensure!(told.has(&name_of("a")), "{:?}", told.deleted);
        gate.set(Through::Everything);
        told.until("back", |told| told.frozen.is_none() && !told.has(&name_of("a"))).await?;
        Ok(())
    });
}

/// A version that is not served any more is left for another one, without a gap in what is in force.
#[test]
fn a_version_that_is_not_served_any_more() {
    kube::own(here!(), async |kube| {
        kube.apply(&deny("a")).await?;
        let mut told = Told::synced(kube).await?;
        let name = "authorizationpolicies.security.istio.io";
        let crd = kube
            .get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name)
            .await?
            .context("crd")?;
        let versions = crd["spec"]["versions"].as_array().context("versions")?;
        let v1 = versions.iter().position(|version| version["name"] == "v1").context("v1")?;
        let patch = format!(r#"[{{"op": "replace", "path": "/spec/versions/{v1}/served", "value": false}}]"#);
        kube.kubectl(["patch", "crd", name, "--type=json", "-p", &patch])?;
        until_applied(kube, &deny("b").replace("io/v1", "io/v1beta1")).await?;
        told.until("b", |told| told.has(&name_of("b"))).await?;
        ensure!(told.has(&name_of("a")) && told.deleted.is_empty(), "{:?}", told.deleted);
        told.until("nothing is frozen", |told| told.frozen.is_none()).await?;
        Ok(())
    });
}

/// Whatever is written, cut off and compacted, in the end what was told is what there is.
#[test]
fn in_the_end_it_is_what_there_is() {
    const SEED: u64 = 4;
    kube::own(here!(), async |kube| {
        let gate = kube.gate().await?;
        let path = kube.kubeconfig_at("gated", &gate.url(), kube.admin_token())?;
        let mut told = Told::through(&path, "default").await?;
        told.until("the first list", |told| told.synced).await?;
        // A linear congruential generator will do: the same story each time.
        let mut state = SEED;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for round in 0..120 {
            let name = format!("p-{}", random(12));
            match random(10) {
                0 => gate.set(Through::Closed),
                1 => kube.compact().await?,
                2 if round % 40 == 0 => {
                    kube.stop()?;
                    kube.start().await?;
                }
                2 | 3 => gate.set(Through::Everything),
                4 | 5 => kube.delete(&deny(&name)).await?,
                6 => kube.apply(&deny(&name).replace("DENY", "ALLOW")).await?,
                _ => kube.apply(&deny(&name)).await?,
            }
            while let Ok(change) = told.changes.try_recv() {
                told.take(change);
            }
        }
        gate.set(Through::Everything);
        let api = kube.api("security.istio.io/v1", "AuthorizationPolicy", "default").await?;
        let listed = api.list(&Default::default()).await?;
        let version = |object: &::kube::core::DynamicObject| {
            let metadata = &object.metadata;
            let name = name_of(metadata.name.as_deref().unwrap_or_default());
            (name, metadata.uid.clone().unwrap_or_default(), metadata.generation.unwrap_or_default())
        };
        let expect: Vec<_> = listed.items.iter().map(version).collect();
        ensure!(!expect.is_empty());
        let equal = |told: &Told| {
            let policies = told.objects.iter().filter(|(name, _)| name.starts_with("AuthorizationPolicy "));
            let version = |(name, told): (&String, &Told1)| {
                let version = told.version.clone()?;
                Some((name.clone(), version.uid.to_string(), version.generation))
            };
            policies.filter_map(version).eq(expect.iter().cloned())
        };
        told.until("it is what there is", |told| equal(told) && told.frozen.is_none()).await?;
        ensure!(told.objects.values().all(|told| !told.kept), "{:?}", told.objects);
        Ok(())
    });
}
