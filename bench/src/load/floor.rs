//! The driver's own floor: a server that only replays what one sidecar was sent, so that what is left is the cost of the
//! driver and of the machine. Decides nothing: the first request of a type is answered with all of that type.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};

use super::proxy::Variant;
use super::wire::{DeltaRequest, DeltaResponse, SotwRequest, SotwResponse};

/// What to replay, by type URL, framed.
#[derive(Debug)]
pub struct Recording {
    variant: Variant,
    by_type: HashMap<String, Vec<Bytes>>,
}

impl Recording {
    /// # Errors
    /// If a message is no response.
    pub fn new(variant: Variant, messages: &[Bytes]) -> Result<Self> {
        let mut by_type: HashMap<String, Vec<Bytes>> = HashMap::new();
        for message in messages {
            let type_url = match variant {
                Variant::Delta => DeltaResponse::decode(message.clone())?.type_url,
                Variant::Sotw => SotwResponse::decode(message.clone())?.type_url,
            };
            by_type.entry(type_url).or_default().push(framed(message)?);
        }
        Ok(Self { variant, by_type })
    }

    /// Writes messages to a file, for another process.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(path: &Path, variant: Variant, messages: &[Bytes]) -> Result<()> {
        let mut all = vec![u8::from(variant == Variant::Sotw)];
        for message in messages {
            all.extend_from_slice(&framed(message)?);
        }
        Ok(std::fs::write(path, all)?)
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// If it is no such file.
    pub fn load(path: &Path) -> Result<Self> {
        let mut left = Bytes::from(std::fs::read(path)?);
        ensure!(!left.is_empty(), "an empty recording");
        let variant = if left.split_to(1)[0] == 1 { Variant::Sotw } else { Variant::Delta };
        let mut messages = Vec::new();
        while let Some(length) = left.get(1..5).and_then(|four| <[u8; 4]>::try_from(four).ok()) {
            let length = u32::from_be_bytes(length) as usize;
            ensure!(left.len() >= 5 + length, "a recording that was cut off");
            messages.push(left.split_to(5 + length).slice(5..));
        }
        Self::new(variant, &messages)
    }

    fn type_of(&self, request: Bytes) -> Result<String> {
        Ok(match self.variant {
            Variant::Delta => DeltaRequest::decode(request)?.type_url,
            Variant::Sotw => SotwRequest::decode(request)?.type_url,
        })
    }
}

fn framed(message: &Bytes) -> Result<Bytes> {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).context("a message of 4 GiB")?);
    framed.put_slice(message);
    Ok(framed.freeze())
}

/// Serves for ever.
///
/// # Errors
/// If no connection can be accepted.
pub async fn serve(listener: TcpListener, recording: Recording) -> Result<()> {
    let recording = Arc::new(recording);
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        tokio::spawn(connection(tcp, recording.clone()));
    }
}

async fn connection(tcp: TcpStream, recording: Arc<Recording>) -> Result<()> {
    let mut connection = h2::server::Builder::new().handshake::<_, Bytes>(tcp).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        tokio::spawn(stream(request.into_body(), respond, recording.clone()));
    }
    Ok(())
}

async fn stream(
    mut body: h2::RecvStream,
    mut respond: h2::server::SendResponse<Bytes>,
    recording: Arc<Recording>,
) -> Result<()> {
    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let mut send = respond.send_response(head, false)?;
    let mut buffer = BytesMut::new();
    let mut answered = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        buffer.extend_from_slice(&data);
        while let Some(length) = buffer.get(1..5).and_then(|four| <[u8; 4]>::try_from(four).ok()) {
            let length = u32::from_be_bytes(length) as usize;
            if buffer.len() < 5 + length {
                break;
            }
            let type_url = recording.type_of(buffer.split_to(5 + length).freeze().slice(5..))?;
            if answered.contains(&type_url) {
                continue;
            }
            for message in recording.by_type.get(&type_url).into_iter().flatten() {
                send.send_data(message.clone(), false)?;
            }
            answered.push(type_url);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::connect::{Dial, Target};
    use crate::load::fleet::{Fleet, Member, Seen};
    use crate::load::wire::{DeltaResource, Kind, samples};

    fn response(kind: Kind, nonce: &str, name: &str, any: Bytes) -> Bytes {
        let resource = DeltaResource { version: "1".to_owned(), resource: any, name: name.to_owned() };
        let (type_url, nonce) = (kind.type_url().to_owned(), nonce.to_owned());
        DeltaResponse { resources: vec![resource], type_url, nonce, removed: Vec::new() }
            .encode_to_vec()
            .into()
    }

    /// Sidecars are served by a replay of what one of them was sent.
    #[tokio::test]
    async fn a_replay_serves_everybody() {
        let messages = [
            response(Kind::Cluster, "1", "a", samples::cluster("a", true, "")),
            response(Kind::Endpoint, "2", "a", samples::named(Kind::Endpoint, "a", "")),
            response(Kind::Listener, "3", "in", samples::listener("in", &["deny"], Some("80"))),
            response(Kind::Extension, "4", "deny", samples::named(Kind::Extension, "deny", "")),
            response(Kind::Route, "5", "80", samples::named(Kind::Route, "80", "")),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        Recording::save(file.path(), Variant::Delta, &messages).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Recording::load(file.path()).unwrap()));
        let mut fleet = Fleet::new(Target { address, spread: false }, true);
        for _ in 0..3 {
            fleet.add(Member::new(Variant::Delta, Bytes::from_static(b""), Dial::default()));
        }
        fleet.wait(Seen::Served, 0..3, std::time::Duration::from_secs(20)).await.unwrap();
        assert_eq!(fleet.counters().read().responses, 15);
        assert_eq!(fleet.recorded(), messages);
        assert_eq!(fleet.member(0).lock().content(), fleet.member(2).lock().content());
        server.abort();
    }
}
