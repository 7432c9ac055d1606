//! What servers say of an event's children with the event itself ("Aggregations of child events").

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use homing_federation::{Pdu, event::is_possible};
use ruma::OwnedEventId;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::visibility::Sight;
use crate::{
    app::App,
    error::Result,
    rooms::Room,
    storage::{Event, EventNid, relations},
};

/// How many events of a thread are read to find the latest that a viewer may see, if the viewer may not see all.
const THREAD_EVENTS: i64 = 20;

/// The longest type of a relation that is kept, in bytes.
const MAX_REL_TYPE: usize = 255;

/// What an event relates to: `m.relates_to` with a `rel_type`.
#[derive(Debug, Deserialize)]
pub struct RelatesTo {
    /// How.
    pub rel_type: String,
    /// To which event.
    pub event_id: OwnedEventId,
}

/// What an event relates to, if it does. What is not as the specification has it is no relation.
#[must_use]
pub fn relates_to(pdu: &Pdu) -> Option<RelatesTo> {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: RelatesTo,
    }
    if pdu.is_state() || !pdu.content.get().contains("m.relates_to") {
        return None;
    }
    let relates_to = pdu.content_as::<Content>().ok()?.relates_to;
    let rel_type = &relates_to.rel_type;
    let fits = !rel_type.is_empty() && rel_type.len() <= MAX_REL_TYPE && !rel_type.contains('\0');
    (fits && is_possible(&relates_to.event_id)).then_some(relates_to)
}

/// What is said of an event's children.
#[derive(Debug, Default)]
pub struct Bundle {
    /// The latest edit.
    pub edit: Option<Arc<Event>>,
    /// The thread that it is the root of.
    pub thread: Option<Thread>,
    /// The events that refer to it.
    pub references: Vec<OwnedEventId>,
}

/// What is said of a thread.
#[derive(Debug)]
pub struct Thread {
    /// The latest event that the viewer sees.
    pub latest: Arc<Event>,
    /// How many events there are, without the root.
    pub count: i64,
    /// Whether the viewer has sent one of them, or the root.
    pub participated: bool,
}

/// What is said of the children of several events.
#[derive(Debug, Default)]
pub struct Bundles(HashMap<EventNid, Bundle>);

impl Bundles {
    /// What is said of the children of an event, if it has any.
    #[must_use]
    pub fn get(&self, event: EventNid) -> Option<&Bundle> {
        self.0.get(&event)
    }

    /// All events that are told with their parents.
    pub fn events(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.0.values().flat_map(|bundle| {
            let thread = bundle.thread.as_ref().map(|thread| &thread.latest);
            bundle.edit.iter().chain(thread)
        })
    }
}

/// The children of one event.
#[derive(Debug, Default)]
struct Children {
    edits: Vec<Arc<Event>>,
    references: Vec<Arc<Event>>,
    thread: Vec<Arc<Event>>,
    /// How many events the thread has, and whether one is the viewer's, where not all of them are in `thread`.
    counted: Option<(i64, bool)>,
}

/// What is to be said of the children of `events`. For the latest events of a room in memory it needs no query: their
/// children are in memory too.
///
/// # Errors
/// If the database fails.
pub async fn of(
    app: &App,
    room: &Room,
    events: &[Arc<Event>],
    sight: &Sight<'_>,
) -> Result<Bundles> {
    let mut bundles = Bundles::default();
    add(app, room, events, sight, &mut bundles).await?;
    let latest: Vec<Arc<Event>> = bundles
        .0
        .values()
        .filter_map(|bundle| bundle.thread.as_ref())
        .map(|thread| Arc::clone(&thread.latest))
        .filter(|event| !bundles.0.contains_key(&event.nid))
        .collect();
    // No thread begins at an event in a thread, so this ends here.
    add(app, room, &latest, sight, &mut bundles).await?;
    Ok(bundles)
}

async fn add(
    app: &App,
    room: &Room,
    events: &[Arc<Event>],
    sight: &Sight<'_>,
    bundles: &mut Bundles,
) -> Result<()> {
    let mut children = HashMap::new();
    let stored = in_memory(room, events, &mut children);
    if !stored.is_empty() {
        let wanted = relations::Wanted {
            parents: &stored,
            viewer: sight.viewer.user,
            ignored: sight.viewer.ignored.iter().copied().collect(),
            thread_events: if sight.is_restricted() {
                THREAD_EVENTS
            } else {
                1
            },
        };
        for child in relations::children(&app.db, room.rules, &wanted).await? {
            let known: &mut Children = children.entry(child.parent).or_default();
            known.add(&child.rel_type, Arc::new(child.event));
            if child.rel_type == "m.thread" {
                known.counted = Some((child.total, child.own));
            }
        }
    }
    for event in events {
        if let Some(children) = children.remove(&event.nid)
            && let Some(bundle) = children.bundle(event, sight)
        {
            bundles.0.insert(event.nid, bundle);
        }
    }
    Ok(())
}

/// Finds the children of the latest events in memory; answers the events whose children may be in the database only.
fn in_memory(
    room: &Room,
    events: &[Arc<Event>],
    children: &mut HashMap<EventNid, Children>,
) -> Vec<EventNid> {
    let seen = room.seen();
    let mut stored = Vec::new();
    let mut recent = HashMap::new();
    for event in events.iter().filter(|event| event.key.is_none()) {
        if event.pos.is_some_and(|pos| pos > seen.events_from) {
            recent.insert(&event.pdu.event_id, event.nid);
        } else {
            stored.push(event.nid);
        }
    }
    if !recent.is_empty() {
        for event in &seen.events {
            if let Some(relation) = relates_to(&event.pdu)
                && let Some(parent) = recent.get(&relation.event_id)
            {
                let known = children.entry(*parent).or_default();
                known.add(&relation.rel_type, Arc::clone(event));
            }
        }
    }
    stored
}

impl Children {
    fn add(&mut self, rel_type: &str, event: Arc<Event>) {
        match rel_type {
            "m.replace" => self.edits.push(event),
            "m.reference" => self.references.push(event),
            "m.thread" => self.thread.push(event),
            _ => {}
        }
    }

    fn bundle(mut self, parent: &Event, sight: &Sight<'_>) -> Option<Bundle> {
        for events in [&mut self.edits, &mut self.references, &mut self.thread] {
            events.retain(|event| sight.sees(event));
            events.sort_by_key(|event| (event.depth(), event.ord));
        }
        let edit = self
            .edits
            .into_iter()
            .filter(|edit| is_valid_edit(parent, edit))
            .max_by(|one, other| place_of_edit(one).cmp(&place_of_edit(other)));
        let references: Vec<_> = self
            .references
            .iter()
            .map(|event| event.pdu.event_id.clone())
            .collect();
        let viewer = sight.viewer.user;
        let own = self.thread.iter().any(|event| event.sender == viewer) || parent.sender == viewer;
        let seen = i64::try_from(self.thread.len()).unwrap_or(i64::MAX);
        let (count, participated) = match self.counted {
            Some((_, stored_own)) if sight.is_restricted() => (seen, own || stored_own),
            Some((total, stored_own)) => (total, own || stored_own),
            None => (seen, own),
        };
        let thread = self.thread.pop().map(|latest| Thread {
            latest,
            count,
            participated,
        });
        (edit.is_some() || thread.is_some() || !references.is_empty()).then_some(Bundle {
            edit,
            thread,
            references,
        })
    }
}

fn place_of_edit(edit: &Event) -> (i64, &str) {
    (
        edit.pdu.origin_server_ts.0.into(),
        edit.pdu.event_id.as_str(),
    )
}

/// "Validity of replacement events". The room is the same because a relation never leaves its room.
fn is_valid_edit(original: &Event, edit: &Event) -> bool {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(rename = "m.new_content", borrow)]
        _new_content: HashMap<Cow<'a, str>, &'a RawValue>,
    }
    original.redacted_by.is_none()
        && edit.redacted_by.is_none()
        && original.sender == edit.sender
        && original.pdu.event_type == edit.pdu.event_type
        && !original.pdu.is_state()
        && !edit.pdu.is_state()
        && relates_to(&original.pdu).is_none_or(|relation| relation.rel_type != "m.replace")
        && (&*edit.pdu.event_type == "m.room.encrypted"
            || edit.pdu.content_as::<Content<'_>>().is_ok())
}
