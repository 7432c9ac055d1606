//! What is new of up to a hundred rooms, with as many queries as for one.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::value::RawValue;

use super::{
    Context, account_data,
    answer::{Answer, Events, Joined, Left, Timeline},
    counts, ephemeral, filter,
    lookup::{self, Found, key},
    plan::Plan,
    render, state, stripped,
    summary::{self, Called},
    timeline,
};
use crate::{
    error::Result,
    room::visibility::Sight,
    rooms::Room,
    storage::{
        self, Event, EventNid, Member, Membership, Pos, RoomNid, UserNid,
        sync::{Delta, Rules},
    },
};

/// How many rooms are gone through at once, with a few statements for all of them.
pub(super) const ROOMS: usize = 1_000;

/// A room that the user has joined or left, and what is told of it.
pub(super) struct Part<'a> {
    pub(super) room: Arc<Room>,
    pub(super) member: Member,
    /// Whether the user was not in the room before what they are to it now, or has forgotten it: then it is not for them
    /// to know more than what they are.
    pub(super) is_strange: bool,
    /// Whether the user was in the room before they left it, forgotten or not.
    pub(super) was_inside: bool,
    /// Up to where the client knows the room; 0: not at all.
    pub(super) since: Pos,
    /// Up to where it is told: for a room that the user has left, up to the leave.
    pub(super) upto: Pos,
    /// All events in between, if memory has them, whether the user may see them or not.
    pub(super) recent: Option<Vec<Arc<Event>>>,
    /// What the user may see; `None`: every event that was found.
    pub(super) sight: Option<Sight<'a>>,
    /// The events that are told.
    pub(super) timeline: Vec<Arc<Event>>,
    /// Whether there are more.
    pub(super) limited: bool,
    /// How the state changed.
    pub(super) deltas: Vec<Delta>,
    /// The state events that are told.
    pub(super) state: Vec<Arc<Event>>,
    /// What the room is called after, if that may have changed.
    pub(super) called: Option<Called>,
    /// Receipts and typing.
    pub(super) ephemeral: Vec<Box<RawValue>>,
}

impl Part<'_> {
    /// Whether the client must be told all state.
    pub(super) fn is_whole(&self, context: &Context<'_>) -> bool {
        self.since == 0 || context.request.full_state
    }

    pub(super) fn is_joined(&self) -> bool {
        self.member.membership == Membership::Join
    }

    fn is_empty(&self) -> bool {
        self.timeline.is_empty()
            && !self.limited
            && self.state.is_empty()
            && self.called.is_none()
            && self.ephemeral.is_empty()
    }
}

/// Rooms on their way into an answer.
pub(super) struct Batch<'a> {
    pub(super) parts: Vec<Part<'a>>,
    pub(super) rules: Rules,
    /// Events that are at hand.
    pub(super) known: HashMap<EventNid, Arc<Event>>,
}

/// Adds what is new of some rooms to the answer; without one, only finds out who has come and gone.
pub(super) async fn add<'a>(
    context: &'a Context<'a>,
    plan: &mut Plan,
    members: &[Member],
    answer: Option<&mut Answer>,
) -> Result<()> {
    let app = context.app;
    let nids: Vec<RoomNid> = members.iter().map(|member| member.room).collect();
    let mut rooms = app.rooms.many(&app.db, &app.log, &nids).await?;
    rooms.retain(|_, room| filter::admits_whole_room(context.filter(), &room.id));
    let mut batch = Batch {
        parts: parts(context, &rooms, members),
        rules: lookup::rules(rooms.values()),
        known: HashMap::new(),
    };
    batch.find_new(context).await?;
    batch.find_strange(context).await?;
    let Some(answer) = answer else {
        state::load_deltas(context, &mut batch).await?;
        let deltas = batch.parts.iter().flat_map(|part| &part.deltas);
        let changed = deltas.filter_map(|delta| delta.event).collect();
        batch.read(context, changed).await?;
        return plan.company.add(context, &mut batch).await;
    };
    stripped::add(context, &rooms, members, answer).await?;
    timeline::load(context, &mut batch).await?;
    state::load(context, &mut batch).await?;
    plan.company.add(context, &mut batch).await?;
    summary::load(context, &mut batch).await?;
    state::add_members(context, &mut batch).await?;
    ephemeral::load(context, plan, &mut batch).await?;
    let unread = counts::load(context, &mut batch).await?;
    let rendered = render::batch(context, &mut batch).await?;
    for ((part, rendered), unread) in batch.parts.into_iter().zip(rendered).zip(unread) {
        let data = plan
            .account_data
            .remove(&Some(part.room.nid))
            .unwrap_or_default();
        let data = part_account_data(context, &part.room, &data)?;
        // Of a room that this server is not in there is nothing to show, but that an invite is void is news.
        let is_void = !part.is_joined() && part.member.pos > context.since && !part.room.is_here();
        let has_news = !part.is_empty() || !data.is_empty() || unread.changed || is_void;
        if !has_news && context.since > 0 && !part.is_whole(context) {
            continue;
        }
        // That an invite is void is news to those alone who know of it.
        let wants_it = context.request.since.is_some() || context.filter().room.include_leave;
        if part.is_strange && !wants_it {
            continue;
        }
        let timeline = Timeline {
            events: rendered.timeline,
            limited: part.limited,
            prev_batch: timeline::prev_batch(context, &part).into(),
        };
        let id = part.room.id.clone();
        if part.is_joined() {
            let joined = Joined {
                summary: part.called.map(Called::into_summary).unwrap_or_default(),
                state: rendered.state,
                timeline,
                ephemeral: Events {
                    events: part.ephemeral,
                },
                account_data: Events { events: data },
                unread_notifications: unread.room,
                unread_thread_notifications: unread.threads,
            };
            answer.rooms.join.insert(id, joined);
        } else {
            let left = Left {
                state: rendered.state,
                timeline,
                account_data: Events { events: data },
            };
            answer.rooms.leave.insert(id, left);
        }
    }
    Ok(())
}

fn part_account_data(
    context: &Context<'_>,
    room: &Room,
    items: &[storage::AccountData],
) -> Result<Vec<Box<RawValue>>> {
    let wanted = &context.filter().room.account_data;
    if !filter::admits_room(wanted, &room.id) {
        return Ok(Vec::new());
    }
    items
        .iter()
        .filter(|item| filter::admits_type(wanted, &item.event_type))
        .take(filter::limit(wanted.limit))
        .map(account_data)
        .collect()
}

/// The rooms that the user has joined or left.
fn parts<'a>(
    context: &Context<'_>,
    rooms: &HashMap<RoomNid, Arc<Room>>,
    members: &[Member],
) -> Vec<Part<'a>> {
    members
        .iter()
        .filter_map(|member| {
            let upto = match member.membership {
                Membership::Join => context.upto,
                Membership::Leave | Membership::Ban => member.pos.min(context.upto),
                Membership::Invite | Membership::Knock => return None,
            };
            Some(Part {
                room: Arc::clone(rooms.get(&member.room)?),
                member: member.clone(),
                is_strange: member.forgotten,
                was_inside: false,
                since: context.since,
                upto,
                recent: None,
                sight: None,
                timeline: Vec::new(),
                limited: false,
                deltas: Vec::new(),
                state: Vec::new(),
                called: None,
                ephemeral: Vec::new(),
            })
        })
        .collect()
}

impl Batch<'_> {
    /// Finds the rooms that the user has joined since the last sync: of these the client knows nothing.
    async fn find_new(&mut self, context: &Context<'_>) -> Result<()> {
        if context.since == 0 {
            return Ok(());
        }
        let app = context.app;
        let changed: Vec<RoomNid> = self
            .parts
            .iter()
            .filter(|part| part.is_joined() && part.member.pos > context.since)
            .map(|part| part.room.nid)
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let key = key("m.room.member", context.requester.user_id.as_str());
        let keys = app
            .names
            .find_keys(&app.db, std::slice::from_ref(&key))
            .await?;
        let Some(key) = keys.get(&key) else {
            return Ok(());
        };
        let window = (context.since, context.upto);
        let mut new = HashSet::new();
        for (room, json) in storage::sync::replaced(&app.db, &changed, *key, window).await? {
            if !json.is_some_and(|json| was_joined(&json)) {
                new.insert(room);
            }
        }
        for part in &mut self.parts {
            if new.contains(&part.room.nid) {
                part.since = 0;
            }
        }
        Ok(())
    }

    /// Finds the rooms of which the user is out without having been in: by a refused invite or knock, or a ban.
    async fn find_strange(&mut self, context: &Context<'_>) -> Result<()> {
        let leaves: Vec<EventNid> = self
            .parts
            .iter()
            .filter(|part| !part.is_joined())
            .map(|part| part.member.event)
            .collect();
        self.read(context, leaves.clone()).await?;
        let known = leaves.iter().filter_map(|leave| self.known.get(leave));
        let replaced = known.filter_map(|leave| leave.replaces).collect();
        self.read(context, replaced).await?;
        for part in self.parts.iter_mut().filter(|part| !part.is_joined()) {
            let before = self
                .known
                .get(&part.member.event)
                .and_then(|leave| self.known.get(&leave.replaces?));
            part.was_inside = before.is_some_and(|before| was_joined(&before.pdu.json));
            part.is_strange |= !part.was_inside;
        }
        Ok(())
    }

    /// Keeps events that are at hand.
    pub(super) fn keep(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.known
                .entry(event.nid)
                .or_insert_with(|| Arc::new(event));
        }
    }

    /// Reads those of these events that are not at hand.
    pub(super) async fn read(
        &mut self,
        context: &Context<'_>,
        mut nids: Vec<EventNid>,
    ) -> Result<()> {
        nids.retain(|nid| !self.known.contains_key(nid));
        if nids.is_empty() {
            return Ok(());
        }
        nids.sort_unstable();
        nids.dedup();
        for part in &self.parts {
            let seen = part.room.seen();
            for event in seen.events.iter().chain(seen.state.values().flatten()) {
                if nids.binary_search(&event.nid).is_ok() {
                    self.known.insert(event.nid, Arc::clone(event));
                }
            }
        }
        nids.retain(|nid| !self.known.contains_key(nid));
        let events = storage::sync::many(&context.app.db, &self.rules, &nids).await?;
        self.keep(events);
        Ok(())
    }

    /// The member events of users, as they are in the current state.
    pub(super) async fn members(
        &self,
        context: &Context<'_>,
        wanted: &[(usize, Vec<&str>)],
    ) -> Result<Found> {
        let keys = wanted
            .iter()
            .flat_map(|(part, users)| {
                users.iter().map(|user| {
                    (
                        Arc::clone(&self.parts[*part].room),
                        key("m.room.member", user),
                    )
                })
            })
            .collect();
        lookup::state(context, keys).await
    }
}

/// Whether a member event is of somebody who has joined.
pub(super) fn was_joined(json: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Member {
        content: Content,
    }
    #[derive(serde::Deserialize)]
    struct Content {
        membership: String,
    }
    serde_json::from_str::<Member>(json).is_ok_and(|member| member.content.membership == "join")
}

/// The senders of events, each once, in the order of their first event.
pub(super) fn senders(events: &[Arc<Event>]) -> Vec<(UserNid, &str)> {
    let mut met = HashSet::new();
    events
        .iter()
        .filter(|event| met.insert(event.sender))
        .map(|event| (event.sender, event.pdu.sender.as_str()))
        .collect()
}
