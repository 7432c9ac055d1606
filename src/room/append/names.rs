//! The integers of all names in the events to be; got before the room is locked, because a new name takes a commit.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use homing_federation::{Pdu, draft::MAX_FIELD_BYTES};
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId, events::TimelineEventType};

use super::{NewEvent, step::key_of};
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    storage::{KeyNid, ServerNid, TypeNid, UserNid},
};

/// Names of events to be, with their integers.
#[derive(Debug, Default)]
pub(in crate::room) struct Names {
    types: HashMap<String, TypeNid>,
    keys: HashMap<Key, KeyNid>,
    members: HashMap<OwnedUserId, UserNid>,
    servers: HashMap<OwnedServerName, ServerNid>,
}

impl Names {
    /// The names of events, if all of them have integers already.
    pub(super) async fn find(app: &App, events: &[NewEvent]) -> Result<Option<Self>> {
        let wanted = Wanted::of(events)?;
        let mut types = HashMap::new();
        for name in &wanted.types {
            match app.names.find_type(&app.db, name).await? {
                Some(nid) => types.insert((*name).to_owned(), nid),
                None => return Ok(None),
            };
        }
        let names = Self {
            types,
            keys: app.names.find_keys(&app.db, &wanted.keys).await?,
            members: app.names.find_users(&app.db, wanted.members()).await?,
            servers: app.names.find_servers(&app.db, wanted.servers(app)).await?,
        };
        let all = wanted.keys.iter().all(|key| names.keys.contains_key(key))
            && wanted.members().all(|id| names.members.contains_key(id))
            && wanted
                .servers(app)
                .all(|name| names.servers.contains_key(name));
        Ok(all.then_some(names))
    }

    /// The names of events, which get integers now where they have none.
    pub(super) async fn give(app: &App, events: &[NewEvent]) -> Result<Self> {
        let wanted = Wanted::of(events)?;
        let (db, log) = (&app.db, &app.log);
        let mut types = HashMap::new();
        for name in &wanted.types {
            let nid = app.names.event_type(db, log, name).await?;
            types.insert((*name).to_owned(), nid);
        }
        Ok(Self {
            types,
            keys: app.names.keys(db, log, &wanted.keys).await?,
            members: app.names.users(db, log, wanted.members()).await?,
            servers: app.names.servers(db, log, wanted.servers(app)).await?,
        })
    }

    /// The names of events of other servers, which get integers now where they have none.
    pub(in crate::room) async fn give_for(app: &App, pdus: &[Arc<Pdu>]) -> Result<Self> {
        let (db, log) = (&app.db, &app.log);
        let mut types = HashMap::new();
        let mut keys = Vec::new();
        let mut users = BTreeSet::new();
        for pdu in pdus {
            if !types.contains_key(&*pdu.event_type) {
                let nid = app.names.event_type(db, log, &pdu.event_type).await?;
                types.insert(pdu.event_type.to_string(), nid);
            }
            users.insert(pdu.sender.clone());
            keys.extend(key_of(pdu));
            let member = pdu.state_key.as_deref();
            if pdu.kind == TimelineEventType::RoomMember
                && let Some(Ok(user)) = member.map(UserId::parse)
            {
                users.insert(user);
            }
        }
        let users = users.iter().map(AsRef::as_ref);
        let others = users.clone().filter(|id| !app.is_local(id));
        Ok(Self {
            types,
            keys: app.names.keys(db, log, &keys).await?,
            members: app.names.users(db, log, users.clone()).await?,
            servers: app
                .names
                .servers(db, log, others.map(UserId::server_name))
                .await?,
        })
    }

    pub(super) fn event_type(&self, name: &str) -> Result<TypeNid> {
        self.types.get(name).copied().ok_or_else(unnamed)
    }

    pub(super) fn key(&self, key: &Key) -> Result<KeyNid> {
        self.keys.get(key).copied().ok_or_else(unnamed)
    }

    pub(in crate::room) fn member(&self, id: &UserId) -> Result<UserNid> {
        self.members.get(id).copied().ok_or_else(unnamed)
    }

    pub(super) fn server(&self, name: &ServerName) -> Result<ServerNid> {
        self.servers.get(name).copied().ok_or_else(unnamed)
    }
}

/// The names that some events have.
struct Wanted<'a> {
    types: BTreeSet<&'a str>,
    keys: Vec<Key>,
    members: Vec<OwnedUserId>,
}

impl<'a> Wanted<'a> {
    fn of(events: &'a [NewEvent]) -> Result<Self> {
        let mut wanted = Self {
            types: BTreeSet::new(),
            keys: Vec::new(),
            members: Vec::new(),
        };
        for event in events {
            check(event)?;
            wanted.types.insert(&event.event_type);
            let Some(state_key) = &event.state_key else {
                continue;
            };
            let key = (event.event_type.as_str().into(), state_key.as_str().into());
            wanted.keys.push(key);
            if event.event_type == "m.room.member" {
                let user = UserId::parse(state_key.as_str()).map_err(|_| {
                    Error::invalid_param("the state key of a member event is a user id")
                })?;
                wanted.members.push(user);
            }
        }
        Ok(wanted)
    }

    fn members(&self) -> impl Iterator<Item = &UserId> + Clone {
        self.members.iter().map(AsRef::as_ref)
    }

    /// The servers of the members, without this one.
    fn servers(&self, app: &App) -> impl Iterator<Item = &ServerName> + Clone {
        let others = self.members().filter(|id| !app.is_local(id));
        others.map(UserId::server_name)
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
