//! The integers of all names in the events to be; got before the room is locked, because a new name takes a commit.

use std::collections::HashMap;

use homing_federation::draft::MAX_FIELD_BYTES;
use ruma::{OwnedUserId, UserId};

use super::NewEvent;
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    storage::{KeyNid, TypeNid, UserNid},
};

/// Names of events to be, with their integers.
#[derive(Debug)]
pub(super) struct Names {
    types: HashMap<String, TypeNid>,
    keys: HashMap<Key, KeyNid>,
    members: HashMap<OwnedUserId, UserNid>,
}

impl Names {
    pub(super) async fn of(app: &App, events: &[NewEvent]) -> Result<Self> {
        let mut types = HashMap::new();
        let mut keys = Vec::new();
        let mut members = Vec::new();
        for event in events {
            check(event)?;
            if !types.contains_key(&event.event_type) {
                let nid = app
                    .names
                    .event_type(&app.db, &app.log, &event.event_type)
                    .await?;
                types.insert(event.event_type.clone(), nid);
            }
            if let Some(state_key) = &event.state_key {
                keys.push((event.event_type.as_str().into(), state_key.as_str().into()));
                if event.event_type == "m.room.member" {
                    let user = UserId::parse(state_key.as_str()).map_err(|_| {
                        Error::invalid_param("the state key of a member event is a user id")
                    })?;
                    members.push(user);
                }
            }
        }
        let keys = app.names.keys(&app.db, &app.log, &keys).await?;
        let members = app
            .names
            .users(&app.db, &app.log, members.iter().map(AsRef::as_ref))
            .await?;
        Ok(Self {
            types,
            keys,
            members,
        })
    }

    pub(super) fn event_type(&self, name: &str) -> Result<TypeNid> {
        self.types.get(name).copied().ok_or_else(unnamed)
    }

    pub(super) fn key(&self, key: &Key) -> Result<KeyNid> {
        self.keys.get(key).copied().ok_or_else(unnamed)
    }

    pub(super) fn member(&self, id: &UserId) -> Result<UserNid> {
        self.members.get(id).copied().ok_or_else(unnamed)
    }
}

/// Refuses names that no event can have, before they are written.
fn check(event: &NewEvent) -> Result<()> {
    for name in [Some(&event.event_type), event.state_key.as_ref()]
        .into_iter()
        .flatten()
    {
        if name.len() > MAX_FIELD_BYTES {
            return Err(Error::too_large(format!(
                "an event's type and state key have at most {MAX_FIELD_BYTES} bytes"
            )));
        }
        if name.contains('\0') {
            return Err(Error::bad_json("a type or state key has a NUL in it"));
        }
    }
    Ok(())
}

fn unnamed() -> Error {
    Error::internal("a name that was given an integer has none")
}
