//! Who calls and who is called, from what people write: workloads, services, apps, service accounts, SPIFFE IDs. What
//! nobody has heard of is an error for the callee, whose policies could not be told, and a note for the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use mesh::{Service, Workload, WorkloadKind};
use spiffe::{SpiffeId, TrustDomain};

use super::World;

/// Without a certificate.
pub(crate) const PLAINTEXT: &str = "plaintext";
/// Labels that name an app.
const APP: [&str; 2] = ["app", "app.kubernetes.io/name"];
/// Names that an error lists.
const LISTED: usize = 10;

/// Where a request comes from.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// `None`: plaintext, so nobody in particular.
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) notes: Vec<String>,
}

impl Caller {
    pub(crate) fn plaintext() -> Self {
        Self { identity: None, address: None, notes: Vec::new() }
    }
}

/// Where it goes: workloads that one name stands for.
#[derive(Clone, Debug)]
pub(crate) struct Callee {
    pub(crate) workloads: Vec<Arc<Workload>>,
    /// The service that was named.
    pub(crate) service: Option<Arc<Service>>,
}

impl World {
    /// # Errors
    /// If `text` is no name, or stands for several identities.
    pub(crate) fn caller(&self, text: &str) -> Result<Caller> {
        if text == PLAINTEXT {
            return Ok(Caller::plaintext());
        }
        if text.starts_with("spiffe://") {
            let identity: SpiffeId = text.parse().with_context(|| format!("{text:?}"))?;
            return Ok(Caller { identity: Some(identity), address: None, notes: Vec::new() });
        }
        let (namespace, name) = split(text)?;
        let (workloads, _) = self.named(namespace, name);
        let accounts: BTreeSet<_> = workloads.iter().map(|w| w.service_account.clone()).collect();
        let mut notes = Vec::new();
        let account = match accounts.len() {
            0 => {
                if !self.knows_account(namespace, name) {
                    notes.push(format!("nothing is known of {text}: taken for a service account"));
                }
                name.into()
            }
            1 => accounts.into_iter().next().context("counted above")?,
            _ => bail!("{text} stands for several service accounts: {}", list(accounts.iter())),
        };
        let proxyless = !workloads.is_empty() && workloads.iter().all(|w| !w.mutual_tls);
        if proxyless {
            notes
                .push(format!("{text} is not labelled as having a proxy: without one it calls in plaintext"));
        }
        let address = workloads.first().and_then(|w| w.addresses.first().copied());
        Ok(Caller { identity: Some(self.identity(namespace, &account)?), address, notes })
    }

    /// The identity of a service account in this mesh.
    ///
    /// # Errors
    /// If the names cannot be part of a SPIFFE ID.
    pub(crate) fn identity(&self, namespace: &str, account: &str) -> Result<SpiffeId> {
        let domain: TrustDomain = self.mesh().trust_domain.parse()?;
        Ok(SpiffeId::workload(&domain, namespace, account)?)
    }

    fn knows_account(&self, namespace: &str, name: &str) -> bool {
        let runs = |w: &Arc<Workload>| *w.namespace == *namespace && *w.service_account == *name;
        self.offline.workloads().iter().any(runs)
            || self.offline.service_accounts().any(|id| *id.namespace == *namespace && *id.name == *name)
    }

    /// The workloads of `text`; with `labels`, one that nobody has registered.
    ///
    /// # Errors
    /// If there are none.
    pub(crate) fn callee(&mut self, text: &str, labels: &[String]) -> Result<Callee> {
        let (namespace, name) = split(text)?;
        if !labels.is_empty() {
            let workload = self.register(namespace, name, "default", pairs(labels)?, &BTreeMap::new());
            return Ok(Callee { workloads: vec![workload], service: None });
        }
        let (workloads, service) = self.named(namespace, name);
        if !workloads.is_empty() {
            return Ok(Callee { workloads, service });
        }
        let known = self.offline.workloads();
        let known: BTreeSet<String> = known.iter().map(|w| format!("{}/{}", w.namespace, app(w))).collect();
        match known.is_empty() {
            true => bail!("no workload is known; say what {text} is labelled with: --labels app={name}"),
            false => bail!("no workload {text} is known, but {}", list(known.iter())),
        }
    }

    pub(crate) fn register(
        &mut self,
        namespace: &str,
        name: &str,
        account: &str,
        labels: BTreeMap<String, String>,
        ports: &BTreeMap<String, u16>,
    ) -> Arc<Workload> {
        self.offline.add(Workload {
            namespace: namespace.into(),
            name: name.into(),
            kind: WorkloadKind::WorkloadEntry,
            labels: Arc::new(labels),
            service_account: account.into(),
            addresses: Vec::new(),
            named_ports: ports.clone(),
            mutual_tls: true,
            ready: true,
            created: 0,
            uid: None,
        })
    }

    /// A workload's own name, else a service's, else an app's, else the name that workloads begin with.
    fn named(&self, namespace: &str, name: &str) -> (Vec<Arc<Workload>>, Option<Arc<Service>>) {
        let mut here = self.offline.workloads();
        here.retain(|w| *w.namespace == *namespace);
        let only = |which: &dyn Fn(&Workload) -> bool| -> Vec<Arc<Workload>> {
            here.iter().filter(|w| which(w)).cloned().collect()
        };
        let exact = only(&|w| *w.name == *name);
        if !exact.is_empty() {
            return (exact, None);
        }
        if let Some(service) = self.offline.services(namespace).find(|s| *s.name == *name) {
            let selected = only(&|w| service.selects(w));
            if !selected.is_empty() {
                return (selected, Some(service.clone()));
            }
        }
        let labelled = only(&|w| APP.iter().any(|key| w.labels.get(*key).is_some_and(|app| app == name)));
        if !labelled.is_empty() {
            return (labelled, None);
        }
        let begins = |w: &Workload| w.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
        (only(&begins), None)
    }
}

/// `NAMESPACE/NAME`.
pub(crate) fn split(text: &str) -> Result<(&str, &str)> {
    let (namespace, name) =
        text.split_once('/').with_context(|| format!("{text:?} is not NAMESPACE/NAME"))?;
    ensure!(
        !namespace.is_empty() && !name.is_empty() && !name.contains('/'),
        "{text:?} is not NAMESPACE/NAME"
    );
    Ok((namespace, name))
}

/// `KEY=VALUE`s.
pub(crate) fn pairs(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').with_context(|| format!("{text:?} is not KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

/// How a workload is called where its own name says little.
pub(crate) fn app(workload: &Workload) -> String {
    let app = APP.iter().find_map(|key| workload.labels.get(*key));
    app.cloned().unwrap_or_else(|| workload.name.to_string())
}

fn list<T: ToString>(all: impl ExactSizeIterator<Item = T>) -> String {
    let more = all.len().saturating_sub(LISTED);
    let mut words: Vec<String> = all.take(LISTED).map(|one| one.to_string()).collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}
