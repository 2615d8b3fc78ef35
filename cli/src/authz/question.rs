//! One described request, and what the policies of each kind of workload it may reach say about it. The description is the
//! same on the command line and in a policy test.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mesh::{InboundPort, Workload};
use policy::{
    Applying, EffectivePolicy, Explanation, MtlsMode, Protocol, Request, WorkloadKey, applying, explain,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::World;
use super::parties::{Callee, Caller};

/// What is asked about; what is not said is taken as in [`Request::http`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Described {
    /// The workload's port, or a port of a service in front of it.
    pub(crate) port: Option<u16>,
    pub(crate) protocol: Option<Wire>,
    pub(crate) method: Option<String>,
    /// As it is sent; it is normalised as the mesh says.
    pub(crate) path: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) headers: BTreeMap<String, Values>,
    /// Of a token that is taken to be genuine and in time.
    pub(crate) claims: Option<Map<String, Value>>,
    pub(crate) source_ip: Option<IpAddr>,
    pub(crate) remote_ip: Option<IpAddr>,
    pub(crate) destination_ip: Option<IpAddr>,
    pub(crate) sni: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wire {
    Http,
    Tcp,
}

/// A header sent once or several times.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Values {
    One(String),
    Several(Vec<String>),
}

impl Values {
    fn each(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(value) => std::slice::from_ref(value).iter(),
            Self::Several(values) => values.iter(),
        }
    }
}

/// What is answered, for workloads that are alike. The names of the fields are stable.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    /// The first of these workloads.
    pub(crate) to: String,
    /// How many of them there are.
    pub(crate) workloads: usize,
    /// `null`: plaintext.
    pub(crate) from: Option<String>,
    pub(crate) port: u16,
    pub(crate) protocol: Wire,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// As policies see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    #[serde(flatten)]
    pub(crate) explanation: Explanation,
    pub(crate) policies: Vec<Applying>,
    /// What was assumed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

/// Workloads with the same policy in force and the same ports.
#[derive(Clone, Debug)]
pub(crate) struct Alike {
    pub(crate) workload: Arc<Workload>,
    pub(crate) count: usize,
    pub(crate) policy: Arc<EffectivePolicy>,
    pub(crate) ports: Vec<InboundPort>,
}

impl World {
    /// # Errors
    /// If translation fails, which is a defect.
    pub(crate) fn alike(&mut self, callee: &Callee) -> Result<Vec<Alike>> {
        let mut all: Vec<Alike> = Vec::new();
        for workload in &callee.workloads {
            let policy = self.offline.effective(workload)?;
            let ports = self.offline.ports(workload);
            match all.iter_mut().find(|alike| alike.policy == policy && alike.ports == ports) {
                Some(alike) => alike.count += 1,
                None => all.push(Alike { workload: workload.clone(), count: 1, policy, ports }),
            }
        }
        Ok(all)
    }

    /// One answer for each kind of workload behind `callee`.
    ///
    /// # Errors
    /// If the described request cannot exist.
    pub(crate) fn ask(
        &mut self,
        caller: &Caller,
        callee: &Callee,
        described: &Described,
    ) -> Result<Vec<Answer>> {
        let alike = self.alike(callee)?;
        alike.iter().map(|alike| self.answer(caller, callee, alike, described)).collect()
    }

    fn answer(
        &self,
        caller: &Caller,
        callee: &Callee,
        alike: &Alike,
        described: &Described,
    ) -> Result<Answer> {
        let mut notes = caller.notes.clone();
        if !self.understood {
            notes.push("some of the objects could not be understood: they are read as closed".to_owned());
        }
        let (port, wire) = self.port(callee, alike, described, &mut notes);
        let request = self.request(caller, alike, described, (port, wire), &mut notes)?;
        let workload = &alike.workload;
        let key = WorkloadKey { namespace: workload.namespace.clone(), labels: workload.labels.clone() };
        let http = wire == Wire::Http;
        Ok(Answer {
            to: format!("{}/{}", workload.namespace, workload.name),
            workloads: alike.count,
            from: caller.identity.as_ref().map(|id| id.as_str().to_owned()),
            port,
            protocol: wire,
            method: http.then(|| request.method.clone()),
            path: http.then(|| request.path.clone()),
            explanation: self.judge(caller, &alike.policy, &request),
            policies: applying(self.offline.policies(), &key),
            notes,
        })
    }

    /// What reaches one of `alike`, as its policies see it.
    ///
    /// # Errors
    /// If the described request cannot exist.
    pub(crate) fn described(
        &self,
        caller: &Caller,
        callee: &Callee,
        alike: &Alike,
        described: &Described,
    ) -> Result<Request> {
        let mut notes = Vec::new();
        let at = self.port(callee, alike, described, &mut notes);
        self.request(caller, alike, described, at, &mut notes)
    }

    /// The handshake, then the policies.
    pub(crate) fn judge(&self, caller: &Caller, policy: &EffectivePolicy, request: &Request) -> Explanation {
        let listening = policy.mtls.port(request.destination_port) != MtlsMode::Disable;
        if let Some(identity) = caller.identity.as_ref().filter(|_| listening) {
            let domains = self.mesh().trust_domains();
            if !domains.iter().any(|domain| **domain == *identity.trust_domain()) {
                return Explanation::refused_handshake(&format!(
                    "the mesh accepts no certificates of trust domain {}; it is {}",
                    identity.trust_domain(),
                    domains.join(", ")
                ));
            }
        }
        explain(policy, request)
    }

    /// The workload's own port, and what it speaks.
    fn port(
        &self,
        callee: &Callee,
        alike: &Alike,
        described: &Described,
        notes: &mut Vec<String>,
    ) -> (u16, Wire) {
        let Alike { workload, count: _, policy: _, ports } = alike;
        let known = |port: u16| ports.iter().find(|known| known.port == port);
        let port = match described.port {
            Some(port) if known(port).is_some() => port,
            Some(port) => self.behind(callee, workload, port, notes).unwrap_or(port),
            None => {
                let wanted = |p: &&InboundPort| (p.protocol == mesh::Protocol::Tcp) == (described.tcp());
                let taken = ports.iter().find(wanted).or(ports.first());
                if ports.len() != 1 {
                    let taken = taken.map_or(80, |p| p.port);
                    notes.push(format!("no port was named: {taken} is taken"));
                }
                taken.map_or(80, |p| p.port)
            }
        };
        let tcp = known(port).is_some_and(|p| p.protocol == mesh::Protocol::Tcp);
        let wire = described.protocol.unwrap_or(if tcp { Wire::Tcp } else { Wire::Http });
        if tcp && wire == Wire::Tcp && (described.method.is_some() || described.path.is_some()) {
            notes.push(format!("port {port} speaks TCP: methods and paths are not looked at"));
        }
        (port, wire)
    }

    /// The workload's port behind `port` of a service.
    fn behind(
        &self,
        callee: &Callee,
        workload: &Workload,
        port: u16,
        notes: &mut Vec<String>,
    ) -> Option<u16> {
        let selecting = self.offline.services(&workload.namespace).filter(|s| s.selects(workload));
        for service in callee.service.iter().chain(selecting) {
            let declared = service.ports.iter().find(|declared| declared.port == port);
            if let Some(target) = declared.and_then(|declared| declared.target_on(workload)) {
                if target != port {
                    notes.push(format!("port {port} of service {} leads to port {target}", service.name));
                }
                return Some(target);
            }
        }
        None
    }

    fn request(
        &self,
        caller: &Caller,
        alike: &Alike,
        described: &Described,
        (port, wire): (u16, Wire),
        notes: &mut Vec<String>,
    ) -> Result<Request> {
        let peer = caller.identity.iter().map(|id| id.as_str().to_owned()).collect();
        let bare = match wire {
            Wire::Http => Request::http(port),
            Wire::Tcp => Request::tcp(port),
        };
        let source_ip = described.source_ip.or(caller.address).unwrap_or(bare.source_ip);
        let own = alike.workload.addresses.first().copied();
        let mut request = Request {
            peer,
            source_ip,
            remote_ip: described.remote_ip.unwrap_or(source_ip),
            destination_ip: described.destination_ip.or(own).unwrap_or(bare.destination_ip),
            sni: described.sni.clone().unwrap_or_default(),
            ..bare
        };
        if request.protocol == Protocol::Tcp {
            return Ok(request);
        }
        if let Some(method) = &described.method {
            request.method.clone_from(method);
        }
        if let Some(path) = &described.path {
            let level = self.mesh().path_normalization;
            let seen = level.apply(path).with_context(|| format!("Envoy refuses the path {path:?}"))?;
            if seen != *path {
                notes.push(format!("policies see the path {seen}"));
            }
            request.path = seen;
        }
        request.host = described.host.clone().unwrap_or_default();
        let headers = described.headers.iter();
        let headers =
            headers.flat_map(|(name, values)| values.each().map(move |v| (name.clone(), v.clone())));
        request.headers = headers.collect();
        if request.headers.iter().any(|(name, _)| name.starts_with(':')) {
            bail!("headers that begin with `:` are said as method, path and host");
        }
        request.claims.clone_from(&described.claims);
        Ok(request)
    }
}

impl Described {
    fn tcp(&self) -> bool {
        self.protocol == Some(Wire::Tcp)
    }
}
