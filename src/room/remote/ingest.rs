//! Taking in the state of a room that somebody here joins.
//!
//! The events come in parts and are kept as outliers. Of a room that was never here before, the state is then written in
//! parts too, under a room that nobody can see yet; one last small change makes it a room of this server. What a failure or
//! the end of the server leaves of that is cleared away. Of a room that was here before, only what has changed is written.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use homing_federation::{Pdu, auth_types_for_event, authorize_by_auth_events, authorize_by_state};
use ruma::{
    OwnedServerName, ServerName, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{MutexGuard, mpsc};
use tracing::{debug, info};

use super::{join::Joined, nonsense, stub};
use crate::{
    app::App,
    bus::Effect,
    error::{Error, Result},
    log::Change,
    names::Key,
    room::{
        append::{
            Sender,
            names::Names,
            step::{Placed, Step},
        },
        branches::Derived,
        head::{self, StateMap},
        policy_server,
        receive::{Fate, Received, outliers, parts::Part, take, verify::verify},
    },
    rooms::Room,
    storage::{
        self, Event, EventNid, KeyNid, Member, Membership, RoomNid, UserNid,
        events::{Stub, flags},
        gaps, ingests, members, outside, servers,
        state::StateAt,
    },
};

/// How many state events are written in one commit.
const AT_ONCE: usize = 1000;
/// How often events that rest on later ones are tried again.
const ROUNDS: usize = 5;
/// The most bytes of events that wait for others which they rest on. A server that sends the auth chain first has none.
const MAX_DEFERRED: usize = 128 << 20;

/// Takes in the answer to a join and makes the user a member. If somebody else here was quicker, nothing becomes of the
/// answer: the user can join here. Only if what lets the user in is that other server (`is_able`), the join itself is taken.
///
/// # Errors
/// If the answer is no good; then nothing remains of it but outliers.
pub(super) async fn ingest(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    (ours, is_able): (Arc<Pdu>, bool),
    server: &ServerName,
    parts: mpsc::Receiver<Part>,
) -> Result<Joined> {
    let mut answer = Answer::default();
    answer.read(app, room, parts).await?;
    let pdu = match answer.event.take() {
        Some(text) => countersigned(app, room, &ours, text).await?,
        None => ours,
    };
    // All of the answer is here: nobody waits for its server.
    let _turn = turn(app, room).await?;
    if room.is_here() && !is_able {
        return Ok(Joined::Here(Arc::clone(room)));
    }
    let state = answer.state(app).await?;
    let keys = keys(room, &pdu)?;
    let before = find(app, room, &state, &keys).await?;
    let auth = judge(app, room, &pdu, &before).await?;
    let is_new = {
        let mut slot = room.head.lock().await;
        head::in_slot(app, room, &mut slot).await?.row.max_depth == 0
    };
    if is_new {
        let line = app.log.new_id()?;
        let done = found(app, room, sender, (pdu, auth, before), state, line).await;
        if done.is_err() {
            clear_one(app, room.nid, line).await?;
        }
        done?;
    } else {
        come_back(app, room, pdu, state).await?;
        info!(room = %room.id, %server, "a room was joined again");
    }
    Ok(Joined::Through(Arc::clone(room)))
}

/// The turn to write something of what has come for a join.
async fn turn<'a>(app: &App, room: &'a Arc<Room>) -> Result<MutexGuard<'a, ()>> {
    let turn = room.ingest.lock().await;
    stub::expect_known(app, room).await?;
    Ok(turn)
}

/// What has come of the answer so far.
#[derive(Debug, Default)]
struct Answer {
    state: Vec<EventNid>,
    event: Option<Box<RawValue>>,
    /// Events that could not be judged yet, and whether they are of the state.
    deferred: Vec<(Arc<Pdu>, bool)>,
    deferred_bytes: usize,
}

impl Answer {
    async fn read(
        &mut self,
        app: &App,
        room: &Arc<Room>,
        mut parts: mpsc::Receiver<Part>,
    ) -> Result<()> {
        loop {
            match parts.recv().await {
                Some(Part::AuthChain(texts)) => self.check(app, room, texts, false).await?,
                Some(Part::State(texts)) => self.check(app, room, texts, true).await?,
                Some(Part::Event(text)) => self.event = Some(text),
                Some(Part::Failed(error)) => return Err(error),
                Some(Part::End) => break,
                None => return Err(nonsense("the answer breaks off")),
            }
        }
        for _ in 0..ROUNDS {
            let deferred = std::mem::take(&mut self.deferred);
            let before = deferred.len();
            self.deferred_bytes = 0;
            if before == 0 {
                break;
            }
            let (state, others): (Vec<_>, Vec<_>) =
                deferred.into_iter().partition(|(_, is_state)| *is_state);
            for (pdus, is_state) in [(others, false), (state, true)] {
                let pdus = pdus.into_iter().map(|(pdu, _)| pdu).collect();
                self.keep(app, room, pdus, is_state).await?;
            }
            if self.deferred.len() == before {
                break;
            }
        }
        for (pdu, _) in &self.deferred {
            debug!(event = %pdu.event_id, "an event of a state rests on what was not sent");
        }
        Ok(())
    }

    async fn check(
        &mut self,
        app: &App,
        room: &Arc<Room>,
        texts: Vec<Box<RawValue>>,
        is_state: bool,
    ) -> Result<()> {
        let mut good = Vec::with_capacity(texts.len());
        for checked in verify(app, room.rules, texts).await? {
            match checked {
                Ok(pdu) if pdu.room_id == room.id => good.push(pdu),
                Ok(pdu) => debug!(event = %pdu.event_id, "an event of another room"),
                Err(error) => debug!(%error, "an event of a state is no good"),
            }
        }
        self.keep(app, room, good, is_state).await
    }

    async fn keep(
        &mut self,
        app: &App,
        room: &Arc<Room>,
        pdus: Vec<Arc<Pdu>>,
        is_state: bool,
    ) -> Result<()> {
        let kept = {
            let _turn = turn(app, room).await?;
            outliers::keep(app, room, pdus.clone()).await?
        };
        for pdu in pdus {
            match kept.get(&pdu.event_id) {
                Some(stub) if is_state && stub.flags & flags::REJECTED == 0 => {
                    self.state.push(stub.nid);
                }
                Some(_) => {}
                None => {
                    self.deferred_bytes += pdu.json.len();
                    self.deferred.push((pdu, is_state));
                }
            }
        }
        if self.deferred_bytes > MAX_DEFERRED {
            return Err(nonsense("too much of it rests on what was not sent"));
        }
        Ok(())
    }

    /// The state, by key.
    async fn state(self, app: &App) -> Result<HashMap<KeyNid, EventNid>> {
        let mut state = HashMap::with_capacity(self.state.len());
        for part in self.state.chunks(AT_ONCE) {
            for (key, event) in storage::events::keys(&app.db, part).await? {
                if state.insert(key, event).is_some_and(|other| other != event) {
                    return Err(nonsense("a state with two events for one key"));
                }
            }
        }
        Ok(state)
    }
}

/// The join as the other server has signed it too.
async fn countersigned(
    app: &App,
    room: &Room,
    ours: &Arc<Pdu>,
    text: Box<RawValue>,
) -> Result<Arc<Pdu>> {
    match verify(app, room.rules, vec![text]).await?.pop() {
        // An event whose hash is wrong comes out of the check redacted, with the same id.
        Some(Ok(theirs))
            if theirs.event_id == ours.event_id && theirs.content.get() == ours.content.get() =>
        {
            Ok(theirs)
        }
        Some(Ok(_)) => Err(nonsense("it is another event than was sent")),
        Some(Err(error)) => Err(nonsense(&error.to_string())),
        None => Ok(Arc::clone(ours)),
    }
}

/// The keys that the join is judged by.
fn keys(room: &Room, pdu: &Pdu) -> Result<Vec<Key>> {
    let types = auth_types_for_event(
        room.rules,
        &pdu.kind,
        &pdu.sender,
        pdu.state_key.as_deref(),
        &pdu.content,
    )?;
    let mut keys: Vec<Key> = types
        .iter()
        .map(|(kind, state_key)| head::key(kind, state_key))
        .collect();
    keys.push(head::key(&StateEventType::RoomCreate, ""));
    keys.push(head::key(&StateEventType::RoomMember, pdu.sender.as_str()));
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}

async fn find(
    app: &App,
    room: &Room,
    state: &HashMap<KeyNid, EventNid>,
    keys: &[Key],
) -> Result<StateMap> {
    let nids = app.names.find_keys(&app.db, keys).await?;
    let wanted: Vec<EventNid> = nids
        .values()
        .filter_map(|key| state.get(key).copied())
        .collect();
    let events = storage::events::many(&app.db, room.rules, &wanted).await?;
    let events: HashMap<EventNid, Arc<Event>> = events
        .into_iter()
        .map(|event| (event.nid, Arc::new(event)))
        .collect();
    let at = |key: &Key| events.get(state.get(nids.get(key)?)?).cloned();
    Ok(keys.iter().map(|key| (key.clone(), at(key))).collect())
}

/// Whether the state lets the user join. Answers the events that allow it.
async fn judge(app: &App, room: &Room, pdu: &Pdu, state: &StateMap) -> Result<Vec<EventNid>> {
    #[derive(Deserialize)]
    struct Create {
        room_version: Option<String>,
    }
    let create = state
        .get(&head::key(&StateEventType::RoomCreate, ""))
        .and_then(Option::as_ref)
        .ok_or_else(|| nonsense("a state without a create event"))?;
    let version = create
        .pdu
        .content_as::<Create>()
        .ok()
        .and_then(|content| content.room_version);
    if version.as_deref().unwrap_or("1") != room.version.as_str() {
        return Err(nonsense("the room is of another version than was said"));
    }
    let ids = pdu.auth_events.iter().map(ToString::to_string).collect();
    let auth = storage::events::by_ids(&app.db, room.rules, room.nid, ids).await?;
    let pdus: Vec<Arc<Pdu>> = auth.iter().map(|event| Arc::clone(&event.pdu)).collect();
    let refused = |error: homing_federation::Rejection| Error::forbidden(error.to_string());
    authorize_by_auth_events(room.rules, pdu, &pdus, Some(&create.pdu)).map_err(refused)?;
    authorize_by_state(room.rules, pdu, |kind, state_key| {
        let event = state.get(&head::key(kind, state_key))?.as_ref()?;
        Some(Arc::clone(&event.pdu))
    })
    .map_err(refused)?;
    Ok(auth.iter().map(|event| event.nid).collect())
}

/// What is counted while a state is written.
#[derive(Debug, Default)]
struct Counts {
    joined: i64,
    invited: i64,
    servers: HashMap<OwnedServerName, i64>,
    /// Members of this server, whom everybody may see only when the room is there.
    local: Vec<Member>,
}

/// Makes a room that was never here one of this server.
async fn found(
    app: &App,
    room: &Arc<Room>,
    sender: &Sender,
    (pdu, auth, before): (Arc<Pdu>, Vec<EventNid>, StateMap),
    state: HashMap<KeyNid, EventNid>,
    line: i64,
) -> Result<()> {
    let version = StateAt { line, sv: 1 };
    let mut change = Change::new();
    change.write(ingests::begin(room.nid, line, app.clock.now()));
    change.write(storage::state::add_line(line, room.nid, None));
    app.log.append(change).await?;
    let mut counts = Counts::default();
    let entries: Vec<(KeyNid, EventNid)> = state.into_iter().collect();
    for part in entries.chunks(AT_ONCE) {
        write_state(app, room, part, version, &mut counts).await?;
    }
    let names = Names::give_for(app, std::slice::from_ref(&pdu)).await?;
    let known = storage::events::stubs(&app.db, vec![pdu.event_id.to_string()]).await?;
    let stub: Option<&Stub> = known.get(pdu.event_id.as_str());
    let placed = Placed {
        nid: match stub {
            Some(stub) => stub.nid,
            None => EventNid(app.log.new_id()?),
        },
        is_stored: stub.is_some(),
        sender: sender.user,
        txn: None,
        before: version,
        auth,
        flags: flags::AFTER_GAP,
        redacted_by: None,
    };
    let place = app.log.place().await?;
    let mut slot = room.head.lock().await;
    let head = head::in_slot(app, room, &mut slot).await?;
    let mut step = Step::new(app, room, head, &names);
    adopt(&mut step, app, version, counts).await?;
    step.change.write(ingests::end(room.nid, line));
    step.change.write(outside::forget(room.nid, sender.user));
    for id in &pdu.prev_events {
        step.change
            .write(gaps::open(room.nid, id.as_str(), pdu.depth, true));
    }
    step.add_on_top(pdu, placed, &before).await?;
    let finished = step.finish()?;
    let pending = place.append(finished.change);
    drop(slot);
    let committed = pending.committed().await;
    if committed.is_err() {
        head::forget(app, room, &finished.reading).await?;
    }
    committed?;
    Ok(())
}

/// Writes a part of a state that nobody can see yet.
async fn write_state(
    app: &App,
    room: &Room,
    entries: &[(KeyNid, EventNid)],
    version: StateAt,
    counts: &mut Counts,
) -> Result<()> {
    let mut change = Change::new();
    let at = change.position();
    for (key, event) in entries {
        for write in storage::state::adopt(room.nid, *key, *event, version) {
            change.write(write);
        }
    }
    let nids: Vec<EventNid> = entries.iter().map(|(_, event)| *event).collect();
    for member in members_of(app, room, &nids).await? {
        counts.joined += i64::from(member.membership == Membership::Join);
        counts.invited += i64::from(member.membership == Membership::Invite);
        let id = app.names.user_id(&app.db, member.user).await?;
        if member.is_local {
            counts.local.push(member);
            continue;
        }
        if member.membership == Membership::Join {
            let server = id.server_name().to_owned();
            *counts.servers.entry(server).or_default() += 1;
        }
        change.write(members::set(&member, at));
    }
    app.log.append(change).await?;
    Ok(())
}

/// What the member events among some events say.
async fn members_of(app: &App, room: &Room, nids: &[EventNid]) -> Result<Vec<Member>> {
    #[derive(Deserialize)]
    struct Content {
        membership: MembershipState,
        #[serde(default)]
        displayname: serde_json::Value,
        #[serde(default)]
        avatar_url: serde_json::Value,
    }
    let text = |value: serde_json::Value| {
        let text = value.as_str()?;
        Some(text.replace('\0', ""))
    };
    let events = storage::events::many(&app.db, room.rules, nids).await?;
    let mut found = Vec::new();
    for event in &events {
        if &*event.pdu.event_type != "m.room.member" {
            continue;
        }
        let content: Option<Content> = event.pdu.content_as().ok();
        let user = event.pdu.state_key.as_deref().map(UserId::parse);
        if let (Some(content), Some(Ok(user))) = (content, user) {
            found.push((user, event, content));
        }
    }
    let users: HashSet<_> = found.iter().map(|(user, ..)| user.clone()).collect();
    let users = users.iter().map(AsRef::as_ref);
    let nids: HashMap<_, UserNid> = app.names.users(&app.db, &app.log, users).await?;
    Ok(found
        .into_iter()
        .filter_map(|(user, event, content)| {
            Some(Member {
                room: room.nid,
                user: *nids.get(&user)?,
                membership: Membership::from_state(&content.membership),
                event: event.nid,
                sender: event.sender,
                pos: 0,
                is_local: app.is_local(&user),
                display_name: text(content.displayname),
                avatar_url: text(content.avatar_url),
                forgotten: false,
            })
        })
        .collect())
}

/// Makes a state that was written the one of the room.
async fn adopt(step: &mut Step<'_>, app: &App, version: StateAt, counts: Counts) -> Result<()> {
    let room = Arc::clone(step.room);
    step.row.state_line = version.line;
    step.row.state_sv = version.sv;
    step.row.joined_count = counts.joined;
    step.row.invited_count = counts.invited;
    let at = step.change.position();
    step.change.effect(Effect::State {
        room: Arc::clone(&room),
        changes: None,
        at,
    });
    let names: Vec<&ServerName> = counts.servers.keys().map(AsRef::as_ref).collect();
    let nids = app
        .names
        .servers(&app.db, &app.log, names.iter().copied())
        .await?;
    for (name, joined) in &counts.servers {
        let Some(server) = nids.get(name) else {
            continue;
        };
        step.change
            .write(servers::set(room.nid, *server, *joined, app.head(), at));
        step.change.effect(Effect::Server {
            room: Arc::clone(&room),
            name: name.clone(),
            server: *server,
            joined: *joined,
            at,
        });
    }
    for member in counts.local {
        step.change.write(members::set(&member, at));
        step.change.effect(Effect::Member {
            room: Arc::clone(&room),
            member,
            at,
        });
    }
    Ok(())
}

/// Makes the user a member of a room that this server was in before: its state becomes what it is now. If this server is in
/// the room still, the join is an event like others, of a server that has no say in what the room's state is.
async fn come_back(
    app: &App,
    room: &Arc<Room>,
    pdu: Arc<Pdu>,
    state: HashMap<KeyNid, EventNid>,
) -> Result<()> {
    let mut received = Received::new(pdu);
    received.is_return = !room.is_here();
    if !received.is_return {
        policy_server::settle(app, room, &mut received).await?;
        match take(app, room, vec![received.clone()]).await?.pop() {
            Some(Fate::Missing(missing)) if missing.auth_events.is_empty() => {}
            fate => return came_to(fate),
        }
    }
    let base = {
        let mut slot = room.head.lock().await;
        let head = head::in_slot(app, room, &mut slot).await?;
        StateAt {
            line: head.row.state_line,
            sv: head.row.state_sv,
        }
    };
    let now: HashMap<KeyNid, EventNid> = storage::state::all_at(&app.db, base)
        .await?
        .into_iter()
        .collect();
    let mut before = Derived::stored(base);
    for key in now.keys().chain(state.keys()) {
        if now.get(key) != state.get(key) {
            before.changes.insert(*key, state.get(key).copied());
        }
    }
    received.before = Some(before);
    came_to(take(app, room, vec![received]).await?.pop())
}

/// Whether a join was taken.
fn came_to(fate: Option<Fate>) -> Result<()> {
    match fate {
        Some(Fate::Accepted | Fate::Known) => Ok(()),
        Some(Fate::Rejected(reason)) => Err(Error::forbidden(reason)),
        Some(Fate::SoftFailed) => Err(Error::forbidden("the room as it is does not let you in")),
        Some(Fate::Missing(_)) => Err(nonsense("the join rests on what was not sent")),
        fate => Err(Error::internal(format!("a join came to {fate:?}"))),
    }
}

/// Clears away what unfinished joins have left.
///
/// # Errors
/// If the database fails.
pub async fn clear(app: &App) -> Result<()> {
    for (room, line) in ingests::all(&app.db).await? {
        clear_one(app, room, line).await?;
    }
    Ok(())
}

async fn clear_one(app: &App, room: RoomNid, line: i64) -> Result<()> {
    let mut change = Change::new();
    for write in ingests::clear(room, line) {
        change.write(write);
    }
    app.log.append(change).await?;
    Ok(())
}
