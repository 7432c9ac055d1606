//! State resolution: what holds where branches of a room's history disagree ("State resolution", versions 2 and 2.1).
//!
//! The algorithm is ruma's, fed with what the branches disagree about, what that rests on, and nothing else; so it costs
//! what the conflict has, not what the room has. `homing_federation::state_res` says why the result is the same.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use homing_federation::{
    Pdu,
    auth_graph::{AuthGraph, Step, Walk},
    state_res::{self, ResolveError, StateMap},
};
use http::StatusCode;
use ruma::{EventId, OwnedEventId, api::error::ErrorKind, events::StateEventType};
use tokio::runtime::Handle;

use super::{
    branches::{Conflict, Derived},
    head,
};
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    rooms::Room,
    storage::{self, Event, EventNid, KeyNid, auth_chain},
};

/// The most events that are looked at for one conflict.
const MAX_EVENTS: usize = 100_000;
/// How many events a room's graph may have before it is forgotten.
const MAX_GRAPH: usize = 50_000;
/// How many events' edges are read at once.
const EDGES_AT_ONCE: usize = 5_000;

/// An event that is in one of the states and not stored yet, with those that allow it.
#[derive(Clone, Copy, Debug)]
pub struct Newest<'a> {
    /// The event.
    pub event: &'a Event,
    /// Those that allow it.
    pub auth: &'a [EventNid],
}

/// What holds where states are in conflict: for each key that changes from `unconflicted` its event, or `None` if it has
/// none. Nearly always these are the keys in conflict and no others.
///
/// # Errors
/// `M_LIMIT_EXCEEDED` if too much would have to be looked at; else if the database fails.
pub async fn resolve(
    app: &App,
    room: &Room,
    unconflicted: &Derived,
    conflict: &Conflict,
    newest: Option<Newest<'_>>,
) -> Result<HashMap<KeyNid, Option<EventNid>>> {
    let mut graph = room.auth_graph.lock().await;
    if graph.len() > MAX_GRAPH {
        *graph = AuthGraph::new();
    }
    if let Some(newest) = newest {
        graph.insert(newest.event.nid, newest.auth);
    }
    let sets: Vec<Vec<EventNid>> = conflict
        .states
        .iter()
        .map(|state| state.values().copied().collect())
        .collect();
    let mut walk = Walk::new(&sets, MAX_EVENTS).map_err(too_much)?;
    let difference = difference(app, unconflicted, conflict, &mut walk, &mut graph).await?;
    let subgraph = walk.subgraph(&graph);
    drop(graph);

    let mut wanted: HashSet<EventNid> = walk.met().chain(subgraph.iter().copied()).collect();
    wanted.extend(sets.iter().flatten());
    let mut events = Events::default();
    events.load(app, room, &wanted, newest).await?;

    let full = sets.iter().flatten().chain(&difference).chain(&subgraph);
    let full = full.filter_map(|nid| events.by_nid.get(nid).map(|event| &*event.pdu));
    let keys: Vec<Key> = state_res::keys_needed(room.rules, full)
        .iter()
        .map(|(kind, state_key)| head::key(kind, state_key))
        .collect();
    let nids = app.names.find_keys(&app.db, &keys).await?;
    let of_state = values(app, unconflicted, nids.values().copied()).await?;
    let in_conflict: HashSet<KeyNid> = conflict.keys.iter().copied().collect();
    let rest: HashSet<EventNid> = of_state
        .iter()
        .filter(|(key, _)| !in_conflict.contains(key))
        .map(|(_, event)| *event)
        .collect();
    events.load(app, room, &rest, newest).await?;

    let ids = |nids: &[EventNid]| -> Vec<OwnedEventId> {
        let known = nids.iter().filter_map(|nid| events.by_nid.get(nid));
        known.map(|event| event.pdu.event_id.clone()).collect()
    };
    let input = Input {
        conflicted: sets.iter().map(|set| events.state(set)).collect(),
        unconflicted: events.state(&rest.into_iter().collect::<Vec<_>>()),
        difference: ids(&difference),
        subgraph: ids(&subgraph),
    };
    let changes = compute(app, room, input, &events).await?;
    translate(app, room, changes, &events).await
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn too_much(error: homing_federation::Error) -> Error {
    Error::new(
        StatusCode::BAD_REQUEST,
        ErrorKind::Unknown,
        format!("the state cannot be resolved: {error}"),
    )
}

/// The auth difference.
async fn difference(
    app: &App,
    unconflicted: &Derived,
    conflict: &Conflict,
    walk: &mut Walk<EventNid>,
    graph: &mut AuthGraph<EventNid>,
) -> Result<Vec<EventNid>> {
    let mut named = Named::Nothing;
    loop {
        match walk.step(graph).map_err(too_much)? {
            Step::Load(nids) => {
                for part in nids.chunks(EDGES_AT_ONCE) {
                    for (event, auth) in auth_chain::edges(&app.db, part).await? {
                        graph.insert(event, auth);
                    }
                }
            }
            Step::Done => break,
            Step::Doubtful(nids) => match named {
                Named::Nothing => {
                    let keys = storage::events::keys(&app.db, &nids).await?;
                    let now = values(app, unconflicted, keys.iter().map(|(key, _)| *key)).await?;
                    let holds = |(key, nid): &&(KeyNid, EventNid)| {
                        now.get(key) == Some(nid) && !conflict.keys.contains(key)
                    };
                    walk.unconflicted(keys.iter().filter(holds).map(|(_, nid)| *nid));
                    named = Named::Doubtful;
                }
                Named::Doubtful => {
                    walk.unconflicted(all_events(app, unconflicted, conflict).await?);
                    named = Named::Everything;
                }
                Named::Everything => break,
            },
        }
    }
    Ok(walk.difference().collect())
}

/// What of the unconflicted state was named.
enum Named {
    Nothing,
    Doubtful,
    Everything,
}

async fn values(
    app: &App,
    state: &Derived,
    keys: impl Iterator<Item = KeyNid>,
) -> Result<HashMap<KeyNid, EventNid>> {
    let keys: Vec<KeyNid> = keys.collect();
    let found = state.values(app, &keys).await?;
    Ok(found
        .into_iter()
        .filter_map(|(key, event)| Some((key, event?)))
        .collect())
}

/// All events of the unconflicted state.
async fn all_events(app: &App, state: &Derived, conflict: &Conflict) -> Result<Vec<EventNid>> {
    let mut all: HashMap<KeyNid, EventNid> = storage::state::all_at(&app.db, state.base)
        .await?
        .into_iter()
        .collect();
    for (key, event) in &state.changes {
        match event {
            Some(event) => all.insert(*key, *event),
            None => all.remove(key),
        };
    }
    for key in &conflict.keys {
        all.remove(key);
    }
    Ok(all.into_values().collect())
}

/// The events that a resolution looks at.
#[derive(Debug, Default)]
struct Events {
    by_nid: HashMap<EventNid, Arc<Event>>,
    by_id: HashMap<OwnedEventId, Arc<Pdu>>,
}

impl Events {
    async fn load(
        &mut self,
        app: &App,
        room: &Room,
        wanted: &HashSet<EventNid>,
        newest: Option<Newest<'_>>,
    ) -> Result<()> {
        let mut missing: Vec<EventNid> = wanted
            .iter()
            .filter(|nid| !self.by_nid.contains_key(nid))
            .copied()
            .collect();
        if let Some(newest) = newest
            && wanted.contains(&newest.event.nid)
        {
            missing.retain(|nid| *nid != newest.event.nid);
            self.add(Arc::new(newest.event.clone()));
        }
        for event in head::events(app, room, &missing).await?.into_values() {
            self.add(event);
        }
        Ok(())
    }

    fn add(&mut self, event: Arc<Event>) {
        let id = event.pdu.event_id.clone();
        self.by_id.insert(id, Arc::clone(&event.pdu));
        self.by_nid.insert(event.nid, event);
    }

    fn state(&self, nids: &[EventNid]) -> StateMap<OwnedEventId> {
        nids.iter()
            .filter_map(|nid| {
                let pdu = &self.by_nid.get(nid)?.pdu;
                let kind = StateEventType::from(&*pdu.event_type);
                let key = (kind, pdu.state_key.as_deref()?.to_owned());
                Some((key, pdu.event_id.clone()))
            })
            .collect()
    }
}

/// What ruma's algorithm is given.
struct Input {
    conflicted: Vec<StateMap<OwnedEventId>>,
    unconflicted: StateMap<OwnedEventId>,
    difference: Vec<OwnedEventId>,
    subgraph: Vec<OwnedEventId>,
}

/// Runs the algorithm on a thread where it may take its time. An event that was not foreseen is read from there.
async fn compute(
    app: &App,
    room: &Room,
    input: Input,
    events: &Events,
) -> Result<StateMap<Option<OwnedEventId>>> {
    let (db, rules, nid) = (app.db.clone(), room.rules, room.nid);
    let known = events.by_id.clone();
    let runtime = Handle::current();
    let resolved = tokio::task::spawn_blocking(move || {
        let fetch = |id: &EventId| -> Result<Option<Arc<Pdu>>, storage::Error> {
            if let Some(pdu) = known.get(id) {
                return Ok(Some(Arc::clone(pdu)));
            }
            let found = storage::events::by_id(&db, rules, nid, id.as_str());
            Ok(runtime.block_on(found)?.map(|event| event.pdu))
        };
        let Input {
            conflicted,
            unconflicted,
            difference,
            subgraph,
        } = input;
        state_res::resolve(
            rules,
            &conflicted,
            &unconflicted,
            difference,
            subgraph,
            fetch,
        )
    });
    match resolved.await.map_err(Error::internal)? {
        Ok(changes) => Ok(changes),
        Err(ResolveError::Fetch(error)) => Err(error.into()),
        Err(error @ ResolveError::Unresolvable(_)) => Err(Error::refused(error.to_string())),
    }
}

/// The result in the integers of this server.
async fn translate(
    app: &App,
    room: &Room,
    changes: StateMap<Option<OwnedEventId>>,
    events: &Events,
) -> Result<HashMap<KeyNid, Option<EventNid>>> {
    let of = |(kind, state_key): &(StateEventType, String)| head::key(kind, state_key);
    let keys: Vec<Key> = changes.keys().map(of).collect();
    let keys = app.names.find_keys(&app.db, &keys).await?;
    let mut nids: HashMap<&EventId, EventNid> = events
        .by_nid
        .values()
        .map(|event| (&*event.pdu.event_id, event.nid))
        .collect();
    let strange: Vec<String> = changes
        .values()
        .flatten()
        .filter(|id| !nids.contains_key(&***id))
        .map(ToString::to_string)
        .collect();
    let strange = storage::events::stubs(&app.db, strange).await?;
    for id in changes.values().flatten() {
        if let Some(stub) = strange
            .get(id.as_str())
            .filter(|stub| stub.room == room.nid)
        {
            nids.insert(id, stub.nid);
        }
    }
    changes
        .iter()
        .map(|(key, id)| {
            let lost = || Error::internal("resolution answers what is not known");
            let key = *keys.get(&of(key)).ok_or_else(lost)?;
            let event = match id {
                Some(id) => Some(*nids.get(&**id).ok_or_else(lost)?),
                None => None,
            };
            Ok((key, event))
        })
        .collect()
}
