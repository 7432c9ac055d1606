//! What an event means to the events before it and to its readers: relations, threads, unread counts, redactions.

use std::{collections::HashMap, sync::Arc};

use homing_federation::event::{self, Pdu};
use ruma::{
    EventId, OwnedEventId, UserId,
    api::error::ErrorKind,
    events::{StateEventType, TimelineEventType},
};
use serde::Deserialize;

use super::step::Step;
use crate::{
    bus::Effect,
    error::{Error, Result},
    room::{
        aggregations,
        head::{self, StateMap},
        power, push,
    },
    storage::{
        self, Event, EventNid, Position, UserNid,
        events::flags,
        highlights::{self, Highlight},
        members,
        relations::{self, Early},
        search,
        threads::{self, ThreadCount},
    },
};

/// How many of a user's own annotations of an event are looked at to find the same one.
const MAX_OWN_ANNOTATIONS: i64 = 1_000;

/// How many events a person can have in a room that they have not read and that count otherwise for them than for
/// most. Of what comes then, highlights are no longer counted.
const MAX_HIGHLIGHTS: i64 = 500;

/// An event of the same room that another relates to.
#[derive(Debug)]
pub(super) struct Relation {
    pub(super) rel_type: String,
    pub(super) parent: EventNid,
    /// The thread that the relation puts the event into.
    pub(super) thread: Option<EventNid>,
}

impl Step<'_> {
    /// What the event relates to, if that is known here. Otherwise it is kept until that comes.
    pub(super) async fn relation(&mut self, nid: EventNid, pdu: &Pdu) -> Result<Option<Relation>> {
        let Some(relates_to) = aggregations::relates_to(pdu) else {
            return Ok(None);
        };
        let Some(parent) = self.known(&relates_to.event_id).await? else {
            self.add_early(&relates_to.event_id, &relates_to.rel_type, nid);
            return Ok(None);
        };
        let begins = relates_to.rel_type == "m.thread";
        if begins && aggregations::relates_to(&parent.pdu).is_some() {
            return Ok(None);
        }
        Ok(Some(Relation {
            thread: if begins {
                Some(parent.nid)
            } else {
                parent.thread
            },
            rel_type: relates_to.rel_type,
            parent: parent.nid,
        }))
    }

    /// Checks how a local event relates to another.
    ///
    /// # Errors
    /// `M_DUPLICATE_ANNOTATION` if the sender has annotated the event so before, `M_UNKNOWN` for a thread that would
    /// begin at an event that relates to another itself.
    pub(super) async fn check_relation(&self, sender: UserNid, pdu: &Pdu) -> Result<()> {
        let Some(relates_to) = aggregations::relates_to(pdu) else {
            return Ok(());
        };
        let Some(parent) = self.known(&relates_to.event_id).await? else {
            return Ok(());
        };
        match relates_to.rel_type.as_str() {
            "m.annotation" => self.check_annotation(sender, pdu, &parent).await,
            "m.thread" if aggregations::relates_to(&parent.pdu).is_some() => Err(Error::refused(
                "a thread cannot begin at an event that relates to another",
            )),
            _ => Ok(()),
        }
    }

    /// Keeps that an event has come before the one that it relates to.
    fn add_early(&mut self, parent: &EventId, rel_type: &str, child: EventNid) {
        let early = Early {
            parent: parent.to_string(),
            rel_type: rel_type.to_owned(),
            child,
        };
        let write = relations::add_early(self.room.nid, &early);
        self.change.write(write);
        self.past.came_early(early);
    }

    /// An event of the room, if it is here.
    async fn known(&self, id: &EventId) -> Result<Option<Arc<Event>>> {
        let mut ours = self.arrived.iter();
        let ours = ours.find(|event| event.pdu.event_id == id);
        if let Some(event) = ours.or_else(|| self.past.find(id)) {
            return Ok(Some(Arc::clone(event)));
        }
        let recent = {
            let seen = self.room.seen();
            let mut recent = seen.events.iter().rev();
            recent.find(|event| event.pdu.event_id == id).cloned()
        };
        if recent.is_some() {
            return Ok(recent);
        }
        let room = self.room;
        let found =
            storage::events::readable_by_id(&self.app.db, room.rules, room.nid, id.as_str())
                .await?;
        Ok(found.map(Arc::new))
    }

    async fn check_annotation(&self, sender: UserNid, pdu: &Pdu, parent: &Event) -> Result<()> {
        let (Some(wanted), Some(kind)) = (
            annotation_key(&pdu.json),
            self.app
                .names
                .find_type(&self.app.db, &pdu.event_type)
                .await?,
        ) else {
            return Ok(());
        };
        let before =
            relations::own_annotations(&self.app.db, parent.nid, sender, kind, MAX_OWN_ANNOTATIONS);
        if before
            .await?
            .iter()
            .any(|json| annotation_key(json).as_ref() == Some(&wanted))
        {
            return Err(Error::new(
                http::StatusCode::BAD_REQUEST,
                ErrorKind::DuplicateAnnotation,
                "you have annotated the event so already",
            ));
        }
        Ok(())
    }

    /// Counts the event for its thread or for the room.
    pub(super) async fn count(
        &mut self,
        event: &mut Event,
        relation: Option<&Relation>,
        at: Position,
    ) -> Result<()> {
        if let Some(relation) = relation {
            self.relate(event, relation);
        }
        if let Some(write) = search::add(event) {
            self.change.write(write);
        }
        let verdict = push::evaluate(
            self.app,
            self.room,
            event,
            self.row.joined_count,
            &self.blind,
        )
        .await?;
        let notifies = verdict.notifies;
        match event.thread {
            Some(root) => {
                let mut count = self.thread(root).await?;
                count.unread_idx += i64::from(notifies);
                event.unread_idx = count.unread_idx;
                let is_reply = relation.is_some_and(|relation| relation.rel_type == "m.thread");
                if is_reply {
                    count.last = event.nid;
                }
                if is_reply || notifies {
                    self.change
                        .write(threads::set(self.room.nid, root, at, count));
                }
                self.threads.insert(root, count);
            }
            None => {
                self.row.unread_idx += i64::from(notifies);
                event.unread_idx = self.row.unread_idx;
            }
        }
        if notifies {
            event.flags |= flags::NOTIFIES;
            self.leave_out(event.sender, event.thread).await?;
        }
        for user in verdict.ignoring {
            self.leave_out(user, event.thread).await?;
        }
        self.count_highlights(&verdict.differing).await?;
        for (user, flags) in verdict.differing {
            self.single_out(user, event, flags, at).await?;
        }
        Ok(())
    }

    /// Keeps what an event relates to.
    pub(super) fn relate(&mut self, event: &Event, relation: &Relation) {
        let write = relations::add(relation.parent, &relation.rel_type, event.nid);
        self.change.write(write);
    }

    /// Somebody sent the event or ignores who did: it is not unread to them.
    async fn leave_out(&mut self, user: UserNid, thread: Option<EventNid>) -> Result<()> {
        let thread = thread.map_or(0, |root| root.0);
        let mut marker = self.marker(user, thread).await?;
        marker.own += 1;
        self.set_marker(user, thread, marker);
        Ok(())
    }

    /// Keeps that an event counts otherwise for a user, unless there is too much already that they have not read.
    async fn single_out(
        &mut self,
        user: UserNid,
        event: &Event,
        flags: i64,
        at: Position,
    ) -> Result<()> {
        let known = self.highlights.get(&user);
        let known = known.or_else(|| self.head.highlights.get(&user));
        let count = known.copied().unwrap_or_default();
        if count >= MAX_HIGHLIGHTS {
            if flags & highlights::SILENT != 0 {
                self.leave_out(user, event.thread).await?;
            }
            return Ok(());
        }
        self.highlights.insert(user, count + 1);
        let highlight = Highlight {
            user,
            room: event.room,
            thread: event.thread.map_or(0, |root| root.0),
            event: event.nid,
            pos: 0,
            flags,
        };
        self.change.write(highlights::add(&highlight, at));
        self.change.effect(Effect::Highlight(highlight, at));
        Ok(())
    }

    /// Finds out how many events some people have that count otherwise for them, where that is not known yet.
    async fn count_highlights(&mut self, differing: &[(UserNid, i64)]) -> Result<()> {
        let mut unknown: Vec<UserNid> = differing.iter().map(|(user, _)| *user).collect();
        unknown.retain(|user| {
            !self.highlights.contains_key(user) && !self.head.highlights.contains_key(user)
        });
        if unknown.is_empty() {
            return Ok(());
        }
        let found = highlights::counts(&self.app.db, self.room.nid, &unknown).await?;
        let nothing = unknown.into_iter().map(|user| (user, 0));
        self.head.highlights.extend(nothing.chain(found));
        Ok(())
    }

    async fn thread(&self, root: EventNid) -> Result<ThreadCount> {
        match self
            .threads
            .get(&root)
            .or_else(|| self.head.threads.get(&root))
        {
            Some(count) => Ok(*count),
            None => Ok(threads::count(&self.app.db, self.room.nid, root).await?),
        }
    }

    /// Checks what a local redaction is about.
    ///
    /// # Errors
    /// `M_FORBIDDEN` if that may not be redacted, or not by the sender.
    pub(super) async fn check_redaction(&self, pdu: &Pdu, state: &StateMap) -> Result<()> {
        let Some(target) = self.target(pdu).await? else {
            return Ok(());
        };
        if target.pdu.kind == TimelineEventType::RoomCreate {
            return Err(Error::forbidden(
                "the create event of a room cannot be redacted",
            ));
        }
        if target.pdu.sender != pdu.sender && !self.may_redact_others(&pdu.sender, state) {
            return Err(Error::forbidden("you may not redact what others have sent"));
        }
        Ok(())
    }

    /// What a redaction is about, if it is here.
    async fn target(&self, pdu: &Pdu) -> Result<Option<Arc<Event>>> {
        match &pdu.redacts {
            Some(target) => self.known(target).await,
            None => Ok(None),
        }
    }

    fn may_redact_others(&self, user: &UserId, state: &StateMap) -> bool {
        let event_at = |kind| {
            state
                .get(&head::key(kind, ""))?
                .as_deref()
                .map(|event: &Event| &*event.pdu)
        };
        let create = event_at(&StateEventType::RoomCreate);
        let levels = power::from_events(
            self.room,
            create,
            event_at(&StateEventType::RoomPowerLevels),
        );
        levels.user_can_redact_event_of_other(user)
    }

    /// Whether a redaction takes effect, which is another question than whether it may come into the room: every server
    /// may redact what its own users have sent.
    pub(in crate::room) fn redacts(&self, redaction: &Pdu, target: &Pdu, state: &StateMap) -> bool {
        target.kind != TimelineEventType::RoomCreate
            && (redaction.sender.server_name() == target.sender.server_name()
                || self.may_redact_others(&redaction.sender, state))
    }

    /// Takes the content out of the event that a redaction is about. If that has not come yet, the redaction is kept
    /// for it.
    pub(in crate::room) async fn apply_redaction(
        &mut self,
        redaction: &Event,
        state: &StateMap,
    ) -> Result<()> {
        let Some(target_id) = &redaction.pdu.redacts else {
            return Ok(());
        };
        let Some(target) = self.target(&redaction.pdu).await? else {
            self.add_early(target_id, relations::REDACTION, redaction.nid);
            return Ok(());
        };
        if !self.redacts(&redaction.pdu, &target.pdu, state) {
            return Ok(());
        }
        let room = self.room;
        let nameless = self.named_by(&target).await?;
        if let Some(user) = nameless {
            let write = members::forget_names(room.nid, user, target.nid);
            self.change.write(write);
        }
        self.change.write(search::remove(target.nid));
        self.change.write(highlights::redacted(target.nid));
        let pdu = event::redact(&target.pdu, room.rules)?;
        for write in storage::events::redact(target.nid, redaction.nid, &pdu.json) {
            self.change.write(write);
        }
        let event = Event {
            pdu: Arc::new(pdu),
            redacted_by: Some(redaction.nid),
            ..Event::clone(&target)
        };
        self.change.effect(Effect::Redacted {
            room: Arc::clone(room),
            event: Arc::new(event),
            nameless,
        });
        Ok(())
    }

    /// The user whose names in the room are those of this event.
    async fn named_by(&self, event: &Event) -> Result<Option<UserNid>> {
        if event.pdu.kind != TimelineEventType::RoomMember {
            return Ok(None);
        }
        let state_key = event.pdu.state_key.as_deref().unwrap_or_default();
        let Ok(user_id) = UserId::parse(state_key) else {
            return Ok(None);
        };
        let Some(user) = self.app.names.find_user(&self.app.db, &user_id).await? else {
            return Ok(None);
        };
        let member = members::get(&self.app.db, self.room.nid, user).await?;
        Ok(member
            .filter(|member| member.event == event.nid)
            .map(|_| user))
    }
}

/// The key of an annotation.
fn annotation_key(json: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Event {
        content: Content,
    }
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: Annotation,
    }
    #[derive(Deserialize)]
    struct Annotation {
        key: String,
    }
    let event: Event = serde_json::from_str(json).ok()?;
    Some(event.content.relates_to.key)
}

/// The nids of the events that an event names as those that allow it.
pub(super) fn auth_nids(pdu: &Pdu, state: &StateMap) -> Vec<EventNid> {
    let by_id: HashMap<&OwnedEventId, EventNid> = state
        .values()
        .flatten()
        .map(|event| (&event.pdu.event_id, event.nid))
        .collect();
    pdu.auth_events
        .iter()
        .filter_map(|id| by_id.get(id).copied())
        .collect()
}

/// Whether the event counts for the filter field `contains_url`.
pub(super) fn has_url(pdu: &Pdu) -> bool {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        url: std::borrow::Cow<'a, str>,
    }
    pdu.content.get().contains("\"url\"")
        && pdu
            .content_as::<Content<'_>>()
            .is_ok_and(|content| !content.url.is_empty())
}
