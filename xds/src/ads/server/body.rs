//! The bytes of a stream in both directions: gRPC's framing, with buffers that last no longer than their message. Generic
//! codecs keep a buffer as large as the largest message for as long as the stream lives, and streams live for hours.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes};
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tonic::codec::{BufferSettings, Streaming};
use tonic::codegen::{StdError, http};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::stream::Message;
use crate::ads::wire::Wire;

/// A flag and the length, before each message.
const PREFIX: usize = 5;
/// What a stream's reader starts with: an acknowledgement, which is most of what comes.
const REQUEST: usize = 256;

/// The requests of a stream; one of more than `limit` bytes ends it.
///
/// # Errors
/// If they are compressed, which nobody was told to do.
pub(super) fn requests<M: Message, B>(request: http::Request<B>, limit: usize) -> Result<Streaming<M>, Status>
where
    B: Body + Send + 'static,
    B::Error: Into<StdError>,
{
    if request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
        return Err(Status::unimplemented("compressed requests are not read"));
    }
    let decoder = ProstCodec::<M::Answer, M>::raw_decoder(BufferSettings::new(REQUEST, REQUEST));
    Ok(Streaming::new_request(decoder, request.into_body(), None, Some(limit)))
}

/// The responses of a stream as a body. Each is encoded when the transport takes it, into a buffer of its size: who does not
/// read holds one of them, and whose who reads are gone once they are sent.
pub(super) struct Responses<W> {
    messages: mpsc::Receiver<Result<W, Status>>,
    over: bool,
}

impl<W> Responses<W> {
    pub(super) fn new(messages: mpsc::Receiver<Result<W, Status>>) -> Self {
        Self { messages, over: false }
    }
}

impl<W: Wire> Body for Responses<W> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let status = match ready!(self.messages.poll_recv(context)) {
            Some(Ok(message)) => match framed(&message) {
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(status) => status,
            },
            Some(Err(status)) => status,
            None => Status::new(Code::Ok, ""),
        };
        self.over = true;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

fn framed(message: &impl Wire) -> Result<Bytes, Status> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| Status::out_of_range("a response of 4 GiB"))?;
    let mut buffer = Vec::with_capacity(PREFIX + length);
    buffer.put_u8(0);
    buffer.put_u32(prefix);
    message.encode_raw(&mut buffer);
    Ok(buffer.into())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use prost::Message as _;

    use super::*;
    use crate::ads::wire::DiscoveryResponse;

    #[tokio::test]
    async fn messages_are_framed_and_the_status_comes_last() {
        let (sender, receiver) = mpsc::channel(4);
        let message = DiscoveryResponse::from_facts("t", "7".to_owned(), Vec::new(), "me");
        sender.send(Ok(message.clone())).await.unwrap();
        sender.send(Err(Status::unavailable("gone"))).await.unwrap();
        let mut body = Responses::new(receiver);
        let mut next = async || poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let data = next().await.unwrap().unwrap().into_data().unwrap();
        let (prefix, encoded) = data.split_at(PREFIX);
        assert_eq!(prefix[..1], [0]);
        assert_eq!(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize, encoded.len());
        assert_eq!(DiscoveryResponse::decode(encoded).unwrap(), message);
        let trailers = next().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"14".parse().unwrap(), &"gone".parse().unwrap())
        );
        assert!(next().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_that_ends_in_order_says_ok() {
        let (sender, receiver) = mpsc::channel::<Result<DiscoveryResponse, Status>>(1);
        drop(sender);
        let mut body = Responses::new(receiver);
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap().unwrap();
        assert_eq!(frame.into_trailers().unwrap()["grpc-status"], "0");
    }
}
