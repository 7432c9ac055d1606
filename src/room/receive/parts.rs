//! Large answers of other servers, read as they come: states and auth chains.
//!
//! What is held in memory are some parts of an answer, however large it is, and however large the events in it are.

use std::{cell::Cell, io::Read};

use bytes::{Buf as _, Bytes};
use homing_federation::{client, received::MAX_TEXT_BYTES};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::{
    error::{Error, Result},
    room::remote::{failure, nonsense},
};

/// How many events of an answer are worked on at once, about how many bytes of them, and how many such parts wait.
const PART: usize = 500;
const PART_BYTES: usize = 4 << 20;
const PARTS: usize = 4;
/// How many bytes may come without an event in them, that of the next event included, and what is read ahead.
const BETWEEN: usize = 2 * MAX_TEXT_BYTES;

/// A part of an answer.
#[derive(Debug)]
pub(in crate::room) enum Part {
    /// Events of the auth chain.
    AuthChain(Vec<Box<RawValue>>),
    /// Events of the state before an event.
    State(Vec<Box<RawValue>>),
    /// The join, with the signature of the server that let the user in.
    Event(Box<RawValue>),
    /// It was read to its end.
    End,
    /// It breaks off.
    Failed(Error),
}

/// Reads an answer as it comes, on a thread of its own.
pub(in crate::room) fn read(mut body: client::Body) -> mpsc::Receiver<Part> {
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
        let left = Cell::new(BETWEEN);
        let reader = Chunks {
            incoming,
            current: Bytes::new(),
            failure: &mut failure_of_body,
            left: &left,
        };
        let mut json = serde_json::Deserializer::from_reader(std::io::BufReader::new(reader));
        let result = json
            .deserialize_map(Answer {
                parts: &parts,
                left: &left,
            })
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
    /// How many bytes may come before the next event is whole.
    left: &'a Cell<usize>,
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
        let left = self.left.get().checked_sub(length);
        let too_large = || std::io::Error::other("an event of it is too large");
        self.left.set(left.ok_or_else(too_large)?);
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Reads the object that is the answer.
struct Answer<'a> {
    parts: &'a mpsc::Sender<Part>,
    left: &'a Cell<usize>,
}

impl<'de> Visitor<'de> for Answer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the state of a room")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key::<String>()? {
            let (parts, left) = (self.parts, self.left);
            match field.as_str() {
                "auth_chain" => map.next_value_seed(Events {
                    parts,
                    left,
                    part: Part::AuthChain,
                })?,
                "state" | "pdus" => map.next_value_seed(Events {
                    parts,
                    left,
                    part: Part::State,
                })?,
                "event" => {
                    if let Some(event) = map.next_value::<Option<Box<RawValue>>>()? {
                        send(parts, Part::Event(event))?;
                    }
                }
                // Nobody was asked to leave anything out.
                "members_omitted" => {
                    if map.next_value::<Option<bool>>()? == Some(true) {
                        return Err(serde::de::Error::custom("members were left out"));
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
    left: &'a Cell<usize>,
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
        let mut bytes = 0;
        while let Some(event) = seq.next_element::<Box<RawValue>>()? {
            self.left.set(BETWEEN);
            bytes += event.get().len();
            events.push(event);
            if events.len() == PART || bytes >= PART_BYTES {
                bytes = 0;
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
