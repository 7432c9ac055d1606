//! Events as they are sent.

use std::{collections::HashSet, sync::Arc};

use serde_json::value::{RawValue, to_raw_value};

use super::{
    Context, StateForm,
    answer::{Events, State},
    batch::{Batch, Part},
    filter,
};
use crate::{
    error::{Error, Result},
    room::{
        aggregations::{self, Bundles},
        client_event::{self, Known},
        erasure::{self, Pruned},
        visibility::Sight,
    },
    storage::{self, Event, EventNid},
};

/// The events of a room as they are sent.
pub(super) struct Rendered {
    pub(super) timeline: Vec<Box<RawValue>>,
    pub(super) state: State,
}

/// Writes the events of all rooms. What is told with them is read for all rooms at once; only where a timeline is
/// limited and its events have children, these are read room by room.
pub(super) async fn batch(context: &Context<'_>, batch: &mut Batch<'_>) -> Result<Vec<Rendered>> {
    let timelines = batch.parts.iter().flat_map(|part| &part.timeline);
    let others = timelines
        .flat_map(|event| [event.replaces, event.redacted_by])
        .chain(
            batch
                .parts
                .iter()
                .flat_map(|part| &part.state)
                .map(|event| event.redacted_by),
        )
        .flatten()
        .collect();
    batch.read(context, others).await?;
    let parents = parents(context, batch).await?;
    let mut rendered = Vec::with_capacity(batch.parts.len());
    for part in &batch.parts {
        let joined = Sight::joined_since(context.viewer, part.member.pos);
        let sight = part.sight.as_ref().unwrap_or(&joined);
        let has_children = part
            .timeline
            .iter()
            .any(|event| parents.contains(&event.nid));
        let bundles = if has_children {
            bundles(context, part, sight).await?
        } else {
            Bundles::default()
        };
        let pruned = prune(context, batch, part, sight, &bundles).await?;
        let known = |bundles| Known {
            bundles,
            others: &batch.known,
            pruned: &pruned,
        };
        let timeline = write(context, part, &part.timeline, sight, known(&bundles))?;
        let no_children = Bundles::default();
        let events = Events {
            events: write(context, part, &part.state, sight, known(&no_children))?,
        };
        let state = match context.request.state {
            StateForm::Before => State::Before(events),
            StateForm::After => State::After(events),
            StateForm::AfterUnstable => State::AfterUnstable(events),
        };
        rendered.push(Rendered { timeline, state });
    }
    Ok(rendered)
}

/// The children of a timeline, as far as the user may see them: where others take part, a child may be older than what it
/// belongs to.
async fn bundles(context: &Context<'_>, part: &Part<'_>, sight: &Sight<'_>) -> Result<Bundles> {
    let (app, room) = (context.app, &part.room);
    let known;
    let mut sight = sight;
    if part.sight.is_none() && !room.seen().servers.is_empty() {
        known = Sight::quick(app, room, context.viewer).await?;
        sight = &known;
    }
    aggregations::of(app, room, &part.timeline, sight).await
}

/// The events of limited timelines that have children.
async fn parents(context: &Context<'_>, batch: &Batch<'_>) -> Result<HashSet<EventNid>> {
    let nids: Vec<EventNid> = batch
        .parts
        .iter()
        .filter(|part| part.limited)
        .flat_map(|part| &part.timeline)
        .filter(|event| event.key.is_none())
        .map(|event| event.nid)
        .collect();
    let parents = storage::sync::parents(&context.app.db, &nids).await?;
    Ok(parents.into_iter().collect())
}

/// What the user may see in redacted form only of all that is told of a room.
async fn prune(
    context: &Context<'_>,
    batch: &Batch<'_>,
    part: &Part<'_>,
    sight: &Sight<'_>,
    bundles: &Bundles,
) -> Result<Pruned> {
    let others = part.timeline.iter().filter_map(|event| event.replaces);
    let others: Vec<&Arc<Event>> = others.filter_map(|nid| batch.known.get(&nid)).collect();
    let events = part.state.iter().chain(&part.timeline);
    let events = events.chain(bundles.events()).chain(others);
    erasure::prune(context.app, &part.room, sight, events).await
}

fn write(
    context: &Context<'_>,
    part: &Part<'_>,
    events: &[Arc<Event>],
    sight: &Sight<'_>,
    known: Known<'_>,
) -> Result<Vec<Box<RawValue>>> {
    let wanted = context.filter();
    let mut written = if filter::is_federation_format(wanted) {
        events
            .iter()
            .map(|event| known.pruned.pdu(event).json.to_string())
            .map(|json| RawValue::from_string(json).map_err(Error::internal))
            .collect::<Result<_>>()?
    } else {
        client_event::known_events(context.app, &part.room, events, sight, known)?
    };
    if let Some(fields) = &wanted.event_fields {
        for event in &mut written {
            let value = serde_json::from_str(event.get()).map_err(Error::internal)?;
            *event = to_raw_value(&filter::keep_fields(&value, fields)).map_err(Error::internal)?;
        }
    }
    Ok(written)
}
