//! One sidecar's side of ADS without I/O: messages in, requests out. It asks for what earlier responses name, in the order
//! in which Envoy does, acknowledges everything, and keeps name and content hash of what it holds. It never refuses, and
//! looks at content no further than [`super::wire`] does.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::wire::{DeltaRequest, DeltaResponse, Kind, Memo, Parsed, SotwRequest, SotwResponse};

/// Which of the two variants of the protocol the proxy speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// Only what has changed.
    #[default]
    Delta,
    /// State of the world.
    Sotw,
}

/// What shows that a change has arrived.
#[derive(Clone, Debug, Default)]
pub enum Probe {
    #[default]
    Nothing,
    /// A resource holds these bytes.
    Marker(Box<memchr::memmem::Finder<'static>>),
    /// The resource of that name has come with other content than before.
    Changed(Kind, &'static str),
}

impl Probe {
    pub fn marker(marker: &str) -> Self {
        Self::Marker(Box::new(memchr::memmem::Finder::new(marker.as_bytes()).into_owned()))
    }

    fn matches(&self, kind: Kind, parsed: &Parsed, any: &Bytes, changed: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::Marker(finder) => finder.find(any).is_some(),
            Self::Changed(of, name) => changed && *of == kind && *parsed.name == **name,
        }
    }
}

/// What became of a response.
#[derive(Debug)]
pub struct Taken {
    /// `None`: a type that a sidecar does not ask for.
    pub kind: Option<Kind>,
    pub resources: usize,
    /// Bytes of the resources, without their envelope.
    pub resource_bytes: usize,
    /// The probe was met.
    pub matched: bool,
    /// Encoded requests, the acknowledgement first.
    pub send: Vec<Bytes>,
}

/// A response that is none.
#[derive(Debug)]
pub struct Unreadable(pub String);

impl From<prost::DecodeError> for Unreadable {
    fn from(error: prost::DecodeError) -> Self {
        Self(error.to_string())
    }
}

#[derive(Debug, Default)]
struct TypeState {
    active: bool,
    /// Some response has come on some stream.
    answered: bool,
    asked: BTreeSet<Arc<str>>,
    held: HashMap<Arc<str>, Held>,
    version: String,
    nonce: String,
}

#[derive(Debug)]
struct Held {
    parsed: Arc<Parsed>,
    /// Delta only.
    version: Box<str>,
}

/// The state of one sidecar; lives longer than its stream.
#[derive(Debug)]
pub struct Proxy {
    variant: Variant,
    /// An encoded `Node`.
    node: Bytes,
    /// The next request is the stream's first, which says who we are.
    first: bool,
    /// Indexed by [`Kind`].
    types: [TypeState; 5],
}

impl Proxy {
    pub fn new(variant: Variant, node: Bytes) -> Self {
        Self { variant, node, first: true, types: Default::default() }
    }

    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The first requests of a new stream; what is held from an earlier one is told.
    pub fn open(&mut self) -> Vec<Bytes> {
        self.first = true;
        self.types[Kind::Cluster as usize].active = true;
        let active = Kind::ALL.into_iter().filter(|kind| self.types[*kind as usize].active);
        active.collect::<Vec<_>>().into_iter().map(|kind| self.resume(kind)).collect()
    }

    fn resume(&mut self, kind: Kind) -> Bytes {
        let state = &mut self.types[kind as usize];
        state.nonce.clear();
        let versions = match self.variant {
            Variant::Delta => {
                state.held.iter().map(|(name, held)| (name.to_string(), held.version.to_string())).collect()
            }
            Variant::Sotw => BTreeMap::new(),
        };
        let names = state.asked.iter().map(|name| name.to_string()).collect();
        self.request(kind, names, Vec::new(), versions)
    }

    /// Takes a response.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn take(&mut self, message: Bytes, memo: &Memo, probe: &Probe) -> Result<Taken, Unreadable> {
        match self.variant {
            Variant::Delta => self.delta(message, memo, probe),
            Variant::Sotw => self.sotw(message, memo, probe),
        }
    }

    fn delta(&mut self, message: Bytes, memo: &Memo, probe: &Probe) -> Result<Taken, Unreadable> {
        let DeltaResponse { resources, type_url, nonce, removed } = DeltaResponse::decode(message)?;
        let resource_bytes = resources.iter().map(|r| r.resource.len()).sum();
        let mut taken =
            Taken { kind: None, resources: resources.len(), resource_bytes, matched: false, send: vec![] };
        let Some(kind) = Kind::of(&type_url) else { return Ok(taken) };
        taken.kind = Some(kind);
        for resource in resources {
            let parsed = memo.read(kind, &resource.resource)?;
            taken.matched |= self.hold(kind, parsed, resource.version.into(), &resource.resource, probe);
        }
        let state = &mut self.types[kind as usize];
        for name in removed {
            state.held.remove(&*name);
        }
        state.answered = true;
        state.nonce = nonce;
        let (more, fewer) = (Vec::new(), Vec::new());
        taken.send.push(self.request(kind, more, fewer, BTreeMap::new()));
        self.follow(kind, &mut taken.send);
        Ok(taken)
    }

    fn sotw(&mut self, message: Bytes, memo: &Memo, probe: &Probe) -> Result<Taken, Unreadable> {
        let SotwResponse { version_info, resources, type_url, nonce } = SotwResponse::decode(message)?;
        let resource_bytes = resources.iter().map(Bytes::len).sum();
        let mut taken =
            Taken { kind: None, resources: resources.len(), resource_bytes, matched: false, send: vec![] };
        let Some(kind) = Kind::of(&type_url) else { return Ok(taken) };
        taken.kind = Some(kind);
        let mut names = BTreeSet::new();
        for any in resources {
            let parsed = memo.read(kind, &any)?;
            names.insert(parsed.name.clone());
            taken.matched |= self.hold(kind, parsed, Box::default(), &any, probe);
        }
        let state = &mut self.types[kind as usize];
        if kind.wildcard() {
            state.held.retain(|name, _| names.contains(name));
        }
        state.answered = true;
        (state.version, state.nonce) = (version_info, nonce);
        let names = state.asked.iter().map(|name| name.to_string()).collect();
        taken.send.push(self.request(kind, names, Vec::new(), BTreeMap::new()));
        self.follow(kind, &mut taken.send);
        Ok(taken)
    }

    /// Whether the probe was met.
    fn hold(
        &mut self,
        kind: Kind,
        parsed: Arc<Parsed>,
        version: Box<str>,
        any: &Bytes,
        probe: &Probe,
    ) -> bool {
        let held = &mut self.types[kind as usize].held;
        let changed = held.get(&parsed.name).is_none_or(|old| old.parsed.hash != parsed.hash);
        let met = probe.matches(kind, &parsed, any, changed);
        held.insert(parsed.name.clone(), Held { parsed, version });
        met
    }

    /// Asks for what the resources of `kind` refer to, and for listeners once the clusters are complete.
    fn follow(&mut self, kind: Kind, send: &mut Vec<Bytes>) {
        match kind {
            Kind::Cluster => self.ask(kind, Kind::Endpoint, send),
            Kind::Listener => {
                self.ask(kind, Kind::Extension, send);
                self.ask(kind, Kind::Route, send);
            }
            Kind::Endpoint | Kind::Extension | Kind::Route => {}
        }
        let complete = self.types[Kind::Cluster as usize].answered && self.has_all(Kind::Endpoint);
        let listener = &mut self.types[Kind::Listener as usize];
        if complete && !listener.active {
            listener.active = true;
            send.push(self.request(Kind::Listener, Vec::new(), Vec::new(), BTreeMap::new()));
        }
    }

    fn ask(&mut self, from: Kind, kind: Kind, send: &mut Vec<Bytes>) {
        let held = self.types[from as usize].held.values();
        let refers = held.flat_map(|held| &held.parsed.refers).filter(|(of, _)| *of == kind);
        let needed: BTreeSet<Arc<str>> = refers.map(|(_, name)| name.clone()).collect();
        let state = &mut self.types[kind as usize];
        if needed == state.asked {
            return;
        }
        let more: Vec<String> = needed.difference(&state.asked).map(|name| name.to_string()).collect();
        let fewer: Vec<String> = state.asked.difference(&needed).map(|name| name.to_string()).collect();
        for name in &fewer {
            state.held.remove(name.as_str());
        }
        state.asked = needed;
        state.active = true;
        let (more, fewer) = match self.variant {
            Variant::Delta => (more, fewer),
            Variant::Sotw => {
                (self.types[kind as usize].asked.iter().map(|n| n.to_string()).collect(), Vec::new())
            }
        };
        send.push(self.request_without_nonce(kind, more, fewer));
    }

    /// Delta requests that only change a subscription carry no nonce; SotW ones repeat the last.
    fn request_without_nonce(&mut self, kind: Kind, more: Vec<String>, fewer: Vec<String>) -> Bytes {
        if self.variant == Variant::Sotw {
            return self.request(kind, more, fewer, BTreeMap::new());
        }
        let nonce = std::mem::take(&mut self.types[kind as usize].nonce);
        let request = self.request(kind, more, fewer, BTreeMap::new());
        self.types[kind as usize].nonce = nonce;
        request
    }

    fn request(
        &mut self,
        kind: Kind,
        names: Vec<String>,
        fewer: Vec<String>,
        versions: BTreeMap<String, String>,
    ) -> Bytes {
        let node = if std::mem::take(&mut self.first) { self.node.clone() } else { Bytes::new() };
        let state = &self.types[kind as usize];
        let (type_url, response_nonce) = (kind.type_url().to_owned(), state.nonce.clone());
        let encoded = match self.variant {
            Variant::Delta => DeltaRequest {
                node,
                type_url,
                subscribe: names,
                unsubscribe: fewer,
                initial_versions: versions,
                response_nonce,
            }
            .encode_to_vec(),
            Variant::Sotw => {
                let version_info = state.version.clone();
                SotwRequest { version_info, node, resource_names: names, type_url, response_nonce }
                    .encode_to_vec()
            }
        };
        encoded.into()
    }

    fn has_all(&self, kind: Kind) -> bool {
        let state = &self.types[kind as usize];
        state.asked.iter().all(|name| state.held.contains_key(name))
    }

    /// Everything it asked for has come.
    pub fn served(&self) -> bool {
        let whole = |kind: Kind| self.types[kind as usize].answered;
        let named = [Kind::Endpoint, Kind::Extension, Kind::Route];
        whole(Kind::Cluster) && whole(Kind::Listener) && named.into_iter().all(|kind| self.has_all(kind))
    }

    /// What it asked for and did not get.
    pub fn missing(&self) -> Vec<(Kind, Arc<str>)> {
        let lacks = |kind: Kind| {
            let state = &self.types[kind as usize];
            state
                .asked
                .iter()
                .filter(|name| !state.held.contains_key(*name))
                .map(move |name| (kind, name.clone()))
        };
        Kind::ALL.into_iter().flat_map(lacks).collect()
    }

    /// Name and content hash of all that it holds.
    pub fn content(&self) -> BTreeMap<(Kind, Arc<str>), u64> {
        let of = |kind: Kind| {
            let held = self.types[kind as usize].held.iter();
            held.map(move |(name, held)| ((kind, name.clone()), held.parsed.hash))
        };
        Kind::ALL.into_iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{DeltaResource, samples};
    use super::*;

    struct Conversation {
        proxy: Proxy,
        memo: Memo,
        probe: Probe,
    }

    /// What a request says, without its node.
    #[derive(Debug, PartialEq)]
    struct Said(Kind, Vec<String>, Vec<String>, String);

    impl Conversation {
        fn new(variant: Variant) -> Self {
            let proxy = Proxy::new(variant, Bytes::from_static(b"node"));
            Self { proxy, memo: Memo::default(), probe: Probe::Nothing }
        }

        fn delta(
            &mut self,
            kind: Kind,
            nonce: &str,
            resources: &[(&str, Bytes)],
            removed: &[&str],
        ) -> (Vec<Said>, bool) {
            let wrap = |(name, any): &(&str, Bytes)| DeltaResource {
                version: format!("v-{name}"),
                resource: any.clone(),
                name: (*name).to_owned(),
            };
            let message = DeltaResponse {
                resources: resources.iter().map(wrap).collect(),
                type_url: kind.type_url().to_owned(),
                nonce: nonce.to_owned(),
                removed: removed.iter().map(|name| (*name).to_owned()).collect(),
            };
            let taken = self.proxy.take(message.encode_to_vec().into(), &self.memo, &self.probe).unwrap();
            (taken.send.iter().map(said).collect(), taken.matched)
        }

        fn sotw(&mut self, kind: Kind, nonce: &str, resources: &[Bytes]) -> Vec<SotwRequest> {
            let message = SotwResponse {
                version_info: format!("v{nonce}"),
                resources: resources.to_vec(),
                type_url: kind.type_url().to_owned(),
                nonce: nonce.to_owned(),
            };
            let taken = self.proxy.take(message.encode_to_vec().into(), &self.memo, &self.probe).unwrap();
            taken.send.iter().map(|bytes| SotwRequest::decode(bytes.clone()).unwrap()).collect()
        }
    }

    fn said(bytes: &Bytes) -> Said {
        let DeltaRequest { type_url, subscribe, unsubscribe, response_nonce, .. } =
            DeltaRequest::decode(bytes.clone()).unwrap();
        Said(Kind::of(&type_url).unwrap(), subscribe, unsubscribe, response_nonce)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ack(kind: Kind, nonce: &str) -> Said {
        Said(kind, vec![], vec![], nonce.to_owned())
    }

    fn asks(kind: Kind, more: &[&str], fewer: &[&str]) -> Said {
        Said(kind, names(more), names(fewer), String::new())
    }

    #[test]
    fn it_asks_as_envoy_does_and_is_served_when_every_name_has_come() {
        let mut talk = Conversation::new(Variant::Delta);
        let first = talk.proxy.open();
        assert_eq!(first.len(), 1);
        assert_eq!(DeltaRequest::decode(first[0].clone()).unwrap().node, "node");
        let clusters = [("a", samples::cluster("a", true, "")), ("b", samples::cluster("b", false, ""))];
        let (said, _) = talk.delta(Kind::Cluster, "1", &clusters, &[]);
        assert_eq!(said, [ack(Kind::Cluster, "1"), asks(Kind::Endpoint, &["a"], &[])]);
        let (said, _) =
            talk.delta(Kind::Endpoint, "2", &[("a", samples::named(Kind::Endpoint, "a", ""))], &[]);
        assert_eq!(said, [ack(Kind::Endpoint, "2"), asks(Kind::Listener, &[], &[])]);
        assert!(!talk.proxy.served());
        let listener = [("in", samples::listener("in", &["deny"], Some("80")))];
        let (said, _) = talk.delta(Kind::Listener, "3", &listener, &[]);
        let more = [asks(Kind::Extension, &["deny"], &[]), asks(Kind::Route, &["80"], &[])];
        assert_eq!(said[1..], more);
        talk.delta(Kind::Route, "4", &[("80", samples::named(Kind::Route, "80", ""))], &[]);
        assert_eq!(talk.proxy.missing(), [(Kind::Extension, "deny".into())]);
        let (said, _) =
            talk.delta(Kind::Extension, "5", &[("deny", samples::named(Kind::Extension, "deny", ""))], &[]);
        assert_eq!(said, [ack(Kind::Extension, "5")]);
        assert!(talk.proxy.served());
    }

    #[test]
    fn what_nothing_refers_to_any_more_is_unsubscribed() {
        let mut talk = Conversation::new(Variant::Delta);
        talk.proxy.open();
        let cluster = |name: &'static str| (name, samples::cluster(name, true, ""));
        talk.delta(Kind::Cluster, "1", &[cluster("a")], &[]);
        talk.delta(Kind::Endpoint, "2", &[("a", samples::named(Kind::Endpoint, "a", ""))], &[]);
        let (said, _) = talk.delta(Kind::Cluster, "3", &[cluster("b")], &["a"]);
        assert_eq!(said[1], asks(Kind::Endpoint, &["b"], &["a"]));
        let held: Vec<_> =
            talk.proxy.content().into_keys().map(|(kind, name)| (kind, name.to_string())).collect();
        assert_eq!(held, [(Kind::Cluster, "b".to_owned())]);
    }

    #[test]
    fn a_new_stream_tells_what_is_held() {
        let mut talk = Conversation::new(Variant::Delta);
        talk.proxy.open();
        talk.delta(Kind::Cluster, "1", &[("a", samples::cluster("a", true, ""))], &[]);
        talk.delta(Kind::Endpoint, "2", &[("a", samples::named(Kind::Endpoint, "a", ""))], &[]);
        let again: Vec<DeltaRequest> =
            talk.proxy.open().into_iter().map(|bytes| DeltaRequest::decode(bytes).unwrap()).collect();
        let told = |request: &DeltaRequest| request.initial_versions.clone().into_iter().collect::<Vec<_>>();
        assert_eq!(again.len(), 3);
        assert_eq!(told(&again[0]), [("a".to_owned(), "v-a".to_owned())]);
        assert_eq!((again[1].subscribe.clone(), told(&again[1])), (names(&["a"]), told(&again[0])));
        assert!(again[0].subscribe.is_empty() && again[2].initial_versions.is_empty());
        assert_eq!(again.iter().map(|r| r.node.len()).collect::<Vec<_>>(), [4, 0, 0]);
        assert!(again.iter().all(|request| request.response_nonce.is_empty()));
    }

    #[test]
    fn probes_are_met_by_content_and_by_change() {
        let mut talk = Conversation::new(Variant::Delta);
        talk.proxy.open();
        talk.probe = Probe::marker("/here");
        let route = |more| [("r", samples::named(Kind::Route, "r", more))];
        assert!(!talk.delta(Kind::Route, "1", &route("/elsewhere"), &[]).1);
        assert!(talk.delta(Kind::Route, "2", &route("/a/here/b"), &[]).1);
        talk.probe = Probe::Changed(Kind::Route, "r");
        assert!(!talk.delta(Kind::Route, "3", &route("/a/here/b"), &[]).1);
        assert!(talk.delta(Kind::Route, "4", &route("other"), &[]).1);
        talk.probe = Probe::Changed(Kind::Route, "s");
        assert!(!talk.delta(Kind::Route, "5", &route("third"), &[]).1);
    }

    #[test]
    fn state_of_the_world_replaces_wildcard_types_and_repeats_names() {
        let mut talk = Conversation::new(Variant::Sotw);
        talk.proxy.open();
        let cluster = |name: &str| samples::cluster(name, true, "");
        let said = talk.sotw(Kind::Cluster, "1", &[cluster("a"), cluster("b")]);
        assert_eq!((said[0].version_info.as_str(), said[0].response_nonce.as_str()), ("v1", "1"));
        assert_eq!(said[1].resource_names, ["a", "b"]);
        let said = talk.sotw(Kind::Endpoint, "2", &[samples::named(Kind::Endpoint, "a", "")]);
        assert_eq!((said.len(), said[0].resource_names.clone()), (1, names(&["a", "b"])));
        talk.sotw(Kind::Endpoint, "3", &[samples::named(Kind::Endpoint, "b", "")]);
        let said = talk.sotw(Kind::Cluster, "4", &[cluster("b")]);
        assert_eq!((said[1].resource_names.clone(), said[1].response_nonce.as_str()), (names(&["b"]), "3"));
        assert_eq!(talk.proxy.content().len(), 2);
        let again: Vec<SotwRequest> =
            talk.proxy.open().into_iter().map(|bytes| SotwRequest::decode(bytes).unwrap()).collect();
        assert_eq!((again[0].version_info.as_str(), again[0].response_nonce.as_str()), ("v4", ""));
    }
}
