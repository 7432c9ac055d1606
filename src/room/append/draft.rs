//! Making an event of this server on top of a room's head.

use std::sync::Arc;

use homing_federation::{
    auth,
    draft::{Draft, MAX_PREV_EVENTS},
    event::Pdu,
};
use ruma::events::StateEventType;

use super::{NewEvent, Sender, members, step::Step};
use crate::{
    error::{Error, Result},
    names::Key,
    room::head::{self, StateMap},
};

impl Step<'_> {
    /// Makes the event on top of the head, if the rules allow it. Answers it with the state that it was judged by.
    pub(super) async fn build(&self, sender: &Sender, new: NewEvent) -> Result<(Pdu, StateMap)> {
        let rules = self.room.rules;
        let is_create = new.event_type == "m.room.create" && new.state_key.is_some();
        if new.event_type == "m.room.create" && !(is_create && self.extremities.is_empty()) {
            return Err(Error::invalid_param(
                "a room has one create event, its first",
            ));
        }
        if new.event_type == "m.room.member" {
            if new.state_key.is_none() {
                return Err(Error::forbidden("a membership is a state"));
            }
            members::check(&new.content)?;
        }
        let makes_id = is_create && rules.authorization.room_create_event_id_as_room_id;
        let newest = self.extremities.iter().rev().take(MAX_PREV_EVENTS);
        let mut draft = Draft {
            room_id: (!makes_id).then(|| self.room.id.clone()),
            sender: sender.id.clone(),
            event_type: new.event_type,
            state_key: new.state_key,
            content: new.content,
            redacts: new.redacts,
            origin_server_ts: new.ts.unwrap_or_else(|| self.app.clock.timestamp()),
            prev_events: newest.map(|extremity| extremity.id.clone()).collect(),
            auth_events: Vec::new(),
            depth: self.row.max_depth + 1,
        };
        let types = draft.auth_types(rules)?;
        let mut keys: Vec<Key> = types
            .iter()
            .map(|(kind, state_key)| head::key(kind, state_key))
            .collect();
        let needed = keys.len();
        keys.push(head::key(&StateEventType::RoomCreate, ""));
        if let Some(state_key) = &draft.state_key {
            keys.push((draft.event_type.as_str().into(), state_key.as_str().into()));
        }
        let state = self.state_at(&keys).await?;
        draft.auth_events = keys[..needed]
            .iter()
            .filter_map(|key| state.get(key)?.as_ref())
            .map(|event| event.pdu.event_id.clone())
            .collect();
        let pdu = draft.sign(rules, self.app.name(), &self.app.signing_key)?;
        let fetch = |kind: &StateEventType, state_key: &str| {
            state
                .get(&head::key(kind, state_key))?
                .as_ref()
                .map(|event| Arc::clone(&event.pdu))
        };
        auth::authorize(rules, &pdu, fetch)
            .map_err(|rejection| Error::forbidden(rejection.to_string()))?;
        Ok((pdu, state))
    }
}
