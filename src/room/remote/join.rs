//! Joining a room through servers that are in it.

use std::{io::Read, sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use homing_federation::client::{self, Limits};
use ruma::{
    CanonicalJsonObject, RoomId, RoomVersionId, ServerName,
    api::federation::membership::{create_join_event, prepare_join_event},
};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::{
    Candidates, failure, ingest, nonsense, refusal, stub, telling,
    template::{self, Template, as_raw, rules, versions},
};
use crate::{
    app::App,
    error::{Error, Result},
    room::append::Sender,
    rooms::Room,
};

/// What the answer with a room's state may cost: rooms are large, and their servers slow.
const LIMITS: Limits = Limits {
    time: Duration::from_mins(5),
    bytes: 512 << 20,
};
/// How many events of the answer are worked on at once, and how many such parts wait.
const PART: usize = 500;
const PARTS: usize = 4;

/// How a join ended.
#[derive(Debug)]
pub enum Joined {
    /// The user is in the room.
    Through(Arc<Room>),
    /// The user is not, but this server is meanwhile: they can join here.
    Here(Arc<Room>),
}

/// Joins a room through one of some servers.
///
/// # Errors
/// What the servers answer, if none of them lets the user in.
pub async fn join(
    app: &App,
    id: &RoomId,
    sender: &Sender,
    content: CanonicalJsonObject,
    mut servers: Candidates,
) -> Result<Joined> {
    let mut failures = Vec::new();
    while let Some(server) = servers.next(&failures) {
        match through(app, &server, id, sender, content.clone()).await {
            Ok(joined) => return Ok(joined),
            Err(error) => {
                tracing::info!(room = %id, %server, %error, "cannot join through a server");
                failures.push(error);
            }
        }
    }
    Err(telling(failures))
}

async fn through(
    app: &App,
    server: &ServerName,
    id: &RoomId,
    sender: &Sender,
    content: CanonicalJsonObject,
) -> Result<Joined> {
    let user = &sender.id;
    let mut request = prepare_join_event::v1::Request::new(id.to_owned(), user.clone());
    request.ver = versions();
    let prepared = app.federation.send(server, request).await;
    let prepared = prepared.map_err(|error| failure(&error))?;
    let rules = rules(prepared.room_version.as_ref())?;
    let version = prepared.room_version.unwrap_or(RoomVersionId::V1);
    let template = Template::read(&prepared.event, id, user, "join")?;
    let pdu = template.sign(app, rules, id, user, content)?;
    let room = stub::room(app, id, &version, None).await?;
    let _one_at_a_time = room.joining.lock().await;
    let is_able = pdu.content.get().contains(template::AUTHORISER);
    if room.is_here() && !is_able {
        return Ok(Joined::Here(Arc::clone(&room)));
    }
    let request =
        create_join_event::v2::Request::new(id.to_owned(), pdu.event_id.clone(), as_raw(&pdu)?);
    let answer = app.federation.open(LIMITS, server, request).await;
    let answer = answer.map_err(|error| refusal(&error))?;
    let parts = read(answer.into_body());
    ingest::ingest(app, &room, sender, Arc::new(pdu), server, parts).await?;
    Ok(Joined::Through(Arc::clone(&room)))
}

/// A part of the answer to a join.
#[derive(Debug)]
pub(super) enum Part {
    /// Events of the auth chain.
    AuthChain(Vec<Box<RawValue>>),
    /// Events of the state before the join.
    State(Vec<Box<RawValue>>),
    /// The join, with the signature of the server that let the user in.
    Event(Box<RawValue>),
    /// It was read to its end.
    End,
    /// It breaks off.
    Failed(Error),
}

/// Reads an answer as it comes, on a thread of its own.
fn read(mut body: client::Body) -> mpsc::Receiver<Part> {
    let (parts, receiver) = mpsc::channel(PARTS);
    let (chunks, incoming) = mpsc::channel::<Result<Bytes, client::Error>>(PARTS);
    tokio::spawn(async move {
        loop {
            let chunk = match body.chunk().await {
                Ok(Some(chunk)) => Ok(chunk),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let is_over = chunk.is_err();
            if chunks.send(chunk).await.is_err() || is_over {
                return;
            }
        }
    });
    tokio::task::spawn_blocking(move || {
        let mut failure_of_body = None;
        let reader = Chunks {
            incoming,
            current: Bytes::new(),
            failure: &mut failure_of_body,
        };
        let mut json = serde_json::Deserializer::from_reader(std::io::BufReader::new(reader));
        let result = json
            .deserialize_map(Answer { parts: &parts })
            .and_then(|()| json.end());
        let last = match (failure_of_body, result) {
            (Some(error), _) => Part::Failed(failure(&error)),
            (None, Err(error)) => Part::Failed(nonsense(&error.to_string())),
            (None, Ok(())) => Part::End,
        };
        // Who reads may have had enough.
        drop(parts.blocking_send(last));
    });
    receiver
}

/// The chunks of a body as something to read from.
struct Chunks<'a> {
    incoming: mpsc::Receiver<Result<Bytes, client::Error>>,
    current: Bytes,
    failure: &'a mut Option<client::Error>,
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.incoming.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(error)) => {
                    *self.failure = Some(error);
                    return Err(std::io::Error::other("the body broke off"));
                }
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Reads the object that is the answer.
struct Answer<'a> {
    parts: &'a mpsc::Sender<Part>,
}

impl<'de> Visitor<'de> for Answer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the state of a room")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key::<String>()? {
            let parts = self.parts;
            match field.as_str() {
                "auth_chain" => map.next_value_seed(Events {
                    parts,
                    part: Part::AuthChain,
                })?,
                "state" => map.next_value_seed(Events {
                    parts,
                    part: Part::State,
                })?,
                "event" => {
                    if let Some(event) = map.next_value::<Option<Box<RawValue>>>()? {
                        send(parts, Part::Event(event))?;
                    }
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Reads a list of events.
struct Events<'a> {
    parts: &'a mpsc::Sender<Part>,
    part: fn(Vec<Box<RawValue>>) -> Part,
}

impl<'de> DeserializeSeed<'de> for Events<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Events<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut events = Vec::with_capacity(PART);
        while let Some(event) = seq.next_element::<Box<RawValue>>()? {
            events.push(event);
            if events.len() == PART {
                send(self.parts, (self.part)(std::mem::take(&mut events)))?;
            }
        }
        send(self.parts, (self.part)(events))
    }
}

fn send<E: serde::de::Error>(parts: &mpsc::Sender<Part>, part: Part) -> Result<(), E> {
    parts
        .blocking_send(part)
        .map_err(|_| E::custom("nobody waits for the rest"))
}
