//! `countersign.receipts.v1.Receipts`: tells another replica what proxies of this one have in force. Only for callers that
//! prove to be the controller themselves.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::countersign::receipts::v1 as wire;
use spiffe::SpiffeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::receipts_server::ReceiptsServer;

use crate::Handle;

use super::book::Book;

/// A message at least so often.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(400);
/// What comes within this time goes into one message.
const BATCH: Duration = Duration::from_millis(2);
/// Messages that may wait for a slow reader; then nothing is read for it until there is room.
const OUTGOING: usize = 4;
/// Replicas that may listen at once.
const READERS: usize = 64;

/// The gRPC service.
#[derive(Debug)]
pub struct Service {
    book: Book,
    /// The only identity that is answered.
    controller: SpiffeId,
    readers: Arc<Semaphore>,
}

impl Handle {
    /// The receipts of this replica as a gRPC service, for callers with the verified identity `controller` alone.
    pub fn receipts_service(&self, controller: SpiffeId) -> ReceiptsServer<Service> {
        let readers = Arc::new(Semaphore::new(READERS));
        ReceiptsServer::new(Service { book: self.book.clone(), controller, readers })
    }
}

#[tonic::async_trait]
impl wire::receipts_server::Receipts for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller =
            authn::peer(&request).ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        if caller.id != self.controller {
            tracing::warn!(caller = %caller.id, "receipts are not for this caller");
            return Err(Status::permission_denied("receipts are for replicas of the controller only"));
        }
        let place = self.readers.clone().try_acquire_owned();
        let place = place.map_err(|_| Status::resource_exhausted("too many replicas listen"))?;
        tracing::info!(replica = ?request.get_ref().replica.chars().take(253).collect::<String>(), "a replica listens to receipts");
        let (sender, receiver) = mpsc::channel(OUTGOING);
        tokio::spawn(tell(self.book.clone(), sender, place));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Tells one reader what changes, until it goes away.
async fn tell(
    book: Book,
    sender: mpsc::Sender<Result<wire::WatchResponse, Status>>,
    place: OwnedSemaphorePermit,
) {
    let mut reader = book.reader();
    loop {
        tokio::select! {
            changed = tokio::time::timeout(HEARTBEAT, reader.changed()) => match changed {
                Ok(true) => tokio::time::sleep(BATCH).await,
                Ok(false) => return,
                Err(_) => {}
            },
            () = sender.closed() => return,
        }
        // Reserved first: what waits for room is read as late as possible.
        let Ok(room) = sender.reserve().await else { return };
        room.send(Ok((&reader.read()).into()));
        let _ = &place;
    }
}
