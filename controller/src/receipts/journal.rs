//! What one proxy said to what it was sent. Written by its stream, read by the owner of the state; never held across
//! anything slow. Judges nothing: that is [`super::progress`]'s.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc::UnboundedSender;
use xds::ResourceType;

use crate::status::SessionId;

/// Refusals kept per type.
const MAX_NACKS: usize = 64;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nack {
    /// The culprit where the session could tell it.
    pub(crate) resource: Option<Arc<str>>,
    pub(crate) error: String,
    /// When it was first said of that resource.
    pub(crate) since: SystemTime,
}

impl Nack {
    pub(crate) fn new(resource: Option<Arc<str>>, error: String) -> Self {
        Self { resource, error, since: SystemTime::now() }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(super) acked: [Option<u64>; 5],
    /// Something of the type was sent, so the proxy has asked for it.
    pub(super) asked: [bool; 5],
    /// The refusals of each type that no later acknowledgement of all of it has healed.
    nacks: [Vec<Nack>; 5],
    /// It came with inbound listeners that are replaced.
    pub(super) replacing: bool,
    /// A listener that it acknowledged waits for something.
    pub(super) waiting: bool,
    /// Told once after something changed, until [`Self::read`].
    reader: Option<(SessionId, UnboundedSender<SessionId>)>,
    unread: bool,
}

impl Journal {
    pub(crate) fn sent(&mut self, kind: ResourceType) {
        self.asked[kind as usize] = true;
    }

    pub(crate) fn acked(&mut self, kind: ResourceType, generation: u64) {
        let index = kind as usize;
        self.acked[index] = Some(self.acked[index].unwrap_or(0).max(generation));
        self.nacks[index].clear();
        self.tell();
    }

    /// A refusal whose culprit is known replaces what was said while it was searched for.
    pub(crate) fn nacked(&mut self, kind: ResourceType, mut nack: Nack) {
        let nacks = &mut self.nacks[kind as usize];
        if let Some(known) = nacks.iter().find(|known| known.resource == nack.resource) {
            nack.since = known.since;
        }
        nacks.retain(|known| known.resource.is_some() && known.resource != nack.resource);
        nacks.truncate(MAX_NACKS);
        nacks.push(nack);
        self.tell();
    }

    pub(crate) fn replacing(&mut self) {
        self.replacing = true;
    }

    pub(crate) fn waiting(&mut self, waiting: bool) {
        self.waiting = waiting;
        self.tell();
    }

    pub(crate) fn nacks(&self) -> impl Iterator<Item = (ResourceType, &Nack)> {
        ResourceType::ALL
            .into_iter()
            .flat_map(|kind| self.nacks[kind as usize].iter().map(move |nack| (kind, nack)))
    }

    pub(crate) fn acknowledged(&self, kind: ResourceType) -> Option<u64> {
        self.acked[kind as usize]
    }

    /// Whether it has acknowledged what a commit left it with, `changed` being the commits that last changed each type.
    /// What a proxy asks for besides clusters and listeners follows from those: what it has not asked for it does not
    /// use, unless a listener waits for it.
    pub(crate) fn has(&self, changed: &[u64; 5]) -> bool {
        !self.waiting
            && ResourceType::ALL.into_iter().all(|kind| {
                let index = kind as usize;
                match self.acked[index] {
                    Some(acked) => acked >= changed[index],
                    None => !kind.wildcard() && !self.asked[index],
                }
            })
    }

    /// From now on `reader` is told when there is something to read.
    pub(crate) fn follow(&mut self, id: SessionId, reader: UnboundedSender<SessionId>) {
        self.reader = Some((id, reader));
        self.unread = false;
        self.tell();
    }

    /// What is said from now on is told again.
    pub(crate) fn read(&mut self) {
        self.unread = false;
    }

    fn tell(&mut self) {
        if let Some((id, reader)) = &self.reader
            && !std::mem::replace(&mut self.unread, true)
        {
            // The state's owner may be gone already.
            let _ = reader.send(*id);
        }
    }
}
