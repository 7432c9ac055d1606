//! How events look to clients ("Room event format", "Size limits" and the `unsigned` part of events).

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use homing_federation::Pdu;
use ruma::{EventId, MilliSecondsSinceUnixEpoch, RoomId, UserId, serde::Raw};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    aggregations::{self, Bundle, Bundles},
    erasure::{self, Pruned},
    visibility::Sight,
};
use crate::{
    app::App,
    error::{Error, Result},
    rooms::Room,
    storage::{self, Event, EventNid, Membership},
};

/// Whether an event names its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `ClientEvent`.
    WithRoomId,
    /// `ClientEventWithoutRoomID`, for `/sync`.
    WithoutRoomId,
}

#[derive(Serialize)]
struct ClientEvent<'a> {
    content: Cow<'a, RawValue>,
    event_id: &'a EventId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    r#type: &'a str,
    unsigned: Unsigned<'a>,
}

#[derive(Serialize)]
struct Unsigned<'a> {
    age: i64,
    #[serde(rename = "m.relations", skip_serializing_if = "Option::is_none")]
    relations: Option<Relations<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_content: Option<&'a RawValue>,
    /// Not in the specification; clients take from it who has invited the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_sender: Option<&'a UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_because: Option<Box<ClientEvent<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_state: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Relations<'a> {
    #[serde(rename = "m.reference", skip_serializing_if = "Option::is_none")]
    references: Option<References<'a>>,
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    edit: Option<Box<ClientEvent<'a>>>,
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    thread: Option<Thread<'a>>,
}

#[derive(Serialize)]
struct References<'a> {
    chunk: Vec<Reference<'a>>,
}

#[derive(Serialize)]
struct Reference<'a> {
    event_id: &'a EventId,
}

#[derive(Serialize)]
struct Thread<'a> {
    count: i64,
    current_user_participated: bool,
    latest_event: Box<ClientEvent<'a>>,
}

/// What `events` of a room look like to a viewer, in the same order. Whether the viewer may see them is not asked here.
///
/// Reads nothing from the database for recent messages of a room in memory.
///
/// # Errors
/// If the database fails.
pub async fn client_events(
    app: &App,
    room: &Room,
    events: &[Arc<Event>],
    sight: &Sight<'_>,
    form: Form,
) -> Result<Vec<Box<RawValue>>> {
    let bundles = aggregations::of(app, room, events, sight).await?;
    let others = others(app, room, events, &bundles).await?;
    let may_be_pruned = events.iter().chain(bundles.events()).chain(others.values());
    let pruned = erasure::prune(app, room, sight, may_be_pruned).await?;
    let writer = Writer {
        room,
        now: app.clock.now(),
        form,
        sight,
        bundles: &bundles,
        others: &others,
        pruned: &pruned,
    };
    events.iter().map(|event| writer.json(event)).collect()
}

/// What belongs to events that are to be written, read before.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Their children.
    pub bundles: &'a Bundles,
    /// The events that they replace and that redacted them; what is not there is not told.
    pub others: &'a HashMap<EventNid, Arc<Event>>,
    /// What the viewer may see in redacted form only, of all of these.
    pub pruned: &'a Pruned,
}

/// The same for a caller who has read what is told with the events.
///
/// # Errors
/// If an event cannot be serialized.
pub fn known_events(
    app: &App,
    room: &Room,
    events: &[Arc<Event>],
    sight: &Sight<'_>,
    known: Known<'_>,
) -> Result<Vec<Box<RawValue>>> {
    let writer = Writer {
        room,
        now: app.clock.now(),
        form: Form::WithoutRoomId,
        sight,
        bundles: known.bundles,
        others: known.others,
        pruned: known.pruned,
    };
    events.iter().map(|event| writer.json(event)).collect()
}

/// What one event looks like to a viewer.
///
/// # Errors
/// If the database fails.
pub async fn client_event(
    app: &App,
    room: &Room,
    event: &Arc<Event>,
    sight: &Sight<'_>,
    form: Form,
) -> Result<Box<RawValue>> {
    let mut events = client_events(app, room, std::slice::from_ref(event), sight, form).await?;
    events
        .pop()
        .ok_or_else(|| Error::internal("an event has no form for clients"))
}

/// Reads the events that are parts of others: what state events replace, and what redacted events.
async fn others(
    app: &App,
    room: &Room,
    events: &[Arc<Event>],
    bundles: &Bundles,
) -> Result<HashMap<EventNid, Arc<Event>>> {
    let mut wanted: Vec<EventNid> = events
        .iter()
        .chain(bundles.events())
        .flat_map(|event| [event.replaces, event.redacted_by])
        .flatten()
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    {
        let seen = room.seen();
        for event in events
            .iter()
            .chain(&seen.events)
            .chain(seen.state.values().flatten())
        {
            if wanted.binary_search(&event.nid).is_ok() {
                found.insert(event.nid, Arc::clone(event));
            }
        }
    }
    wanted.retain(|nid| !found.contains_key(nid));
    for event in storage::events::some(&app.db, room.rules, &wanted).await? {
        found.insert(event.nid, Arc::new(event));
    }
    Ok(found)
}

struct Writer<'a> {
    room: &'a Room,
    now: i64,
    form: Form,
    sight: &'a Sight<'a>,
    bundles: &'a Bundles,
    others: &'a HashMap<EventNid, Arc<Event>>,
    pruned: &'a Pruned,
}

impl Writer<'_> {
    fn json(&self, event: &Event) -> Result<Box<RawValue>> {
        to_raw_value(&self.event(event, true)?).map_err(Error::internal)
    }

    /// `with_bundle`: an event inside of another one's aggregation has at most an aggregation of its own that has none.
    fn event<'e>(&'e self, event: &'e Event, with_bundle: bool) -> Result<ClientEvent<'e>> {
        let pdu = self.pruned.pdu(event);
        let bundle = self.bundles.get(event.nid).filter(|_| with_bundle);
        let redaction = event.redacted_by.and_then(|nid| self.others.get(&nid));
        let replaced = event.replaces.and_then(|nid| self.others.get(&nid));
        let shown = replaced.filter(|replaced| self.sight.sees_replaced(replaced));
        let unsigned = Unsigned {
            age: self.now - i64::from(pdu.origin_server_ts.0),
            relations: bundle.map(|bundle| self.relations(bundle)).transpose()?,
            membership: self.sight.membership(event).map(Membership::as_str),
            prev_content: shown.map(|replaced| &*self.pruned.pdu(replaced).content),
            prev_sender: shown.map(|replaced| &*replaced.pdu.sender),
            redacted_because: redaction
                .map(|event| self.event(event, false).map(Box::new))
                .transpose()?,
            replaces_state: replaced.map(|replaced| &*replaced.pdu.event_id),
            transaction_id: event
                .txn
                .as_ref()
                .filter(|(device, _)| Some(*device) == self.sight.viewer.device)
                .map(|(_, txn)| &**txn),
        };
        Ok(ClientEvent {
            content: content(pdu)?,
            event_id: &pdu.event_id,
            origin_server_ts: pdu.origin_server_ts,
            redacts: pdu.redacts.as_deref(),
            room_id: (self.form == Form::WithRoomId).then_some(&*self.room.id),
            sender: &pdu.sender,
            state_key: pdu.state_key.as_deref(),
            r#type: &pdu.event_type,
            unsigned,
        })
    }

    fn relations<'e>(&'e self, bundle: &'e Bundle) -> Result<Relations<'e>> {
        let references: Vec<_> = bundle
            .references
            .iter()
            .map(|event_id| Reference { event_id })
            .collect();
        // What is redacted replaces nothing.
        let edit = bundle.edit.as_ref();
        let edit = edit.filter(|edit| !self.pruned.has(edit));
        let thread = bundle.thread.as_ref().map(|thread| {
            Ok::<_, Error>(Thread {
                count: thread.count,
                current_user_participated: thread.participated,
                latest_event: Box::new(self.event(&thread.latest, true)?),
            })
        });
        Ok(Relations {
            references: (!references.is_empty()).then_some(References { chunk: references }),
            edit: edit
                .map(|event| self.event(event, false).map(Box::new))
                .transpose()?,
            thread: thread.transpose()?,
        })
    }
}

/// The content as it was sent. Only where a redaction names its target beside the content, the target is added to it,
/// for clients that look there.
fn content(pdu: &Pdu) -> Result<Cow<'_, RawValue>> {
    match &pdu.redacts {
        Some(target) if !pdu.content.get().contains("\"redacts\"") => {
            let mut fields: BTreeMap<&str, &RawValue> = BTreeMap::new();
            let target = to_raw_value(target).map_err(Error::internal)?;
            let owned: BTreeMap<String, Box<RawValue>> =
                pdu.content_as().map_err(Error::internal)?;
            fields.extend(owned.iter().map(|(key, value)| (key.as_str(), &**value)));
            fields.insert("redacts", &target);
            Ok(Cow::Owned(to_raw_value(&fields).map_err(Error::internal)?))
        }
        _ => Ok(Cow::Borrowed(&pdu.content)),
    }
}

#[derive(Serialize)]
struct Stripped<'a> {
    content: &'a RawValue,
    sender: &'a UserId,
    state_key: &'a str,
    r#type: &'a str,
    /// Of `m.room.create` alone, which clients want whole (MSC4311).
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_server_ts: Option<MilliSecondsSinceUnixEpoch>,
}

/// A state event in the stripped format, for those who are not in the room ("Stripped state").
///
/// # Errors
/// If it is not a state event.
pub fn stripped(event: &Event) -> Result<Box<RawValue>> {
    stripped_pdu(&event.pdu)
}

/// The same for an event that is not stored.
///
/// # Errors
/// If it is not a state event.
pub fn stripped_pdu(pdu: &Pdu) -> Result<Box<RawValue>> {
    let stripped = Stripped {
        content: &pdu.content,
        sender: &pdu.sender,
        state_key: pdu
            .state_key
            .as_deref()
            .ok_or_else(|| Error::internal("only state events have a stripped form"))?,
        r#type: &pdu.event_type,
        origin_server_ts: (&*pdu.event_type == "m.room.create").then_some(pdu.origin_server_ts),
    };
    to_raw_value(&stripped).map_err(Error::internal)
}

/// The same JSON as ruma's answers want it.
#[must_use]
pub fn raw<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}
