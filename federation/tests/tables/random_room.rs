//! Rooms that grow at random, on several servers that do not always see each other.
//!
//! A room has branches, each of which stands for servers that see the same events. Events are
//! added to one branch at a time, and now and then a branch sees all of another one. The state of
//! each event is computed by ruma from whole state sets and whole auth chains, so that it is the
//! measure for whatever computes it from less.
//!
//! Other tests of this repository use this file, too: it needs `homing_federation`, `ruma`,
//! `rand` and `serde_json` only.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use homing_federation::{Draft, Pdu, SigningKey, authorize, room_version};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedServerName, OwnedUserId, RoomVersionId, UInt, UserId,
    events::StateEventType,
    room_version_rules::RoomVersionRules,
    state_res::{self, StateMap, utils::event_id_set::EventIdSet},
};
use serde_json::{Value, json};

/// Who is in the room or may come, and on which of the servers; the first one made it.
const USERS: [(&str, usize); 7] = [
    ("a", 0),
    ("b", 0),
    ("c", 1),
    ("d", 1),
    ("e", 2),
    ("f", 2),
    ("g", 2),
];
const BRANCHES: usize = 3;
/// How many ideas a branch has for one event.
const TRIES: usize = 60;

pub type State = StateMap<OwnedEventId>;

pub struct RandomRoom {
    pub version: RoomVersionId,
    pub rules: &'static RoomVersionRules,
    pub room_id: OwnedRoomId,
    /// All events, each behind those that it names.
    pub events: Vec<Arc<Pdu>>,
    pub by_id: HashMap<OwnedEventId, Arc<Pdu>>,
    /// The state before and after each event.
    pub before: HashMap<OwnedEventId, Arc<State>>,
    pub after: HashMap<OwnedEventId, Arc<State>>,
    /// The latest events of each branch.
    pub heads: [Vec<OwnedEventId>; BRANCHES],
    random: StdRng,
    users: [String; 7],
    keys: BTreeMap<OwnedServerName, Arc<SigningKey>>,
    clock: u32,
}

impl RandomRoom {
    /// A room with its first events on three servers, the same for the same seed and keys.
    pub fn new(
        servers: &[(OwnedServerName, Arc<SigningKey>); 3],
        version: &RoomVersionId,
        seed: u64,
    ) -> Self {
        let room_id = format!("!random{seed}:{}", servers[0].0);
        let mut room = Self {
            version: version.clone(),
            rules: room_version::rules(version).unwrap(),
            room_id: room_id.try_into().unwrap(),
            events: Vec::new(),
            by_id: HashMap::new(),
            before: HashMap::new(),
            after: HashMap::new(),
            heads: Default::default(),
            random: StdRng::seed_from_u64(seed),
            users: USERS.map(|(name, server)| format!("@{name}:{}", servers[server].0)),
            keys: servers.iter().cloned().collect(),
            clock: 1_000,
        };
        room.begin();
        room
    }

    fn begin(&mut self) {
        let all = self.users.clone();
        let all = all.each_ref().map(String::as_str);
        let creator = all[0];
        let mut create = json!({"room_version": self.version.as_str()});
        if !self.rules.authorization.use_room_create_sender {
            create["creator"] = json!(creator);
        }
        let mut users = json!({ all[1]: 100, all[2]: 50, all[4]: 50 });
        if !self.rules.authorization.explicitly_privilege_room_creators {
            users[creator] = json!(100);
        }
        let join = json!({"membership": "join"});
        let mut first = vec![
            ("m.room.create", creator, "", create),
            ("m.room.member", creator, creator, join.clone()),
            ("m.room.power_levels", creator, "", json!({"users": users})),
            (
                "m.room.join_rules",
                creator,
                "",
                json!({"join_rule": "public"}),
            ),
        ];
        for user in &all[1..6] {
            first.push(("m.room.member", user, user, join.clone()));
        }
        for (event_type, sender, state_key, content) in first {
            let prev: Vec<_> = self
                .events
                .last()
                .iter()
                .map(|e| e.event_id.clone())
                .collect();
            let state = self.resolve_at(&prev);
            let added = self.add(&prev, &state, event_type, sender, Some(state_key), content);
            assert!(added, "{event_type} of {sender}");
        }
        let last = self.events.last().unwrap().event_id.clone();
        self.heads = std::array::from_fn(|_| vec![last.clone()]);
    }

    /// Adds an event to a branch, after it may have seen another one.
    pub fn grow(&mut self) {
        let branch = self.random.random_range(0..BRANCHES);
        if self.random.random_bool(0.12) {
            let other = self.random.random_range(0..BRANCHES);
            let seen = self.heads[other].clone();
            self.heads[branch].extend(seen);
            self.forget_seen(branch);
        }
        // Several at once now and then, so that branches have branches.
        let heads = self.heads[branch].clone();
        let count = if self.random.random_bool(0.15) { 2 } else { 1 };
        let mut added = Vec::new();
        let state = self.resolve_at(&heads);
        // In some branches nobody can do anything any more.
        for _ in 0..TRIES {
            let (event_type, sender, state_key, content) = self.idea(&state);
            let state_key = state_key.as_deref();
            if self.add(&heads, &state, event_type, &sender, state_key, content) {
                added.push(self.events.last().unwrap().event_id.clone());
                if added.len() == count {
                    break;
                }
            }
        }
        if added.is_empty() {
            return;
        }
        self.heads[branch] = added;
    }

    /// Leaves out of the heads of a branch those that others of them have seen.
    fn forget_seen(&mut self, branch: usize) {
        let mut heads: HashSet<_> = self.heads[branch].drain(..).collect();
        let mut todo: Vec<_> = heads.iter().cloned().collect();
        let mut seen = HashSet::new();
        while let Some(id) = todo.pop() {
            for id in &self.by_id[&id].prev_events {
                heads.remove(id);
                if seen.insert(id.clone()) {
                    todo.push(id.clone());
                }
            }
        }
        let mut heads: Vec<_> = heads.into_iter().collect();
        heads.sort();
        self.heads[branch] = heads;
    }

    /// Something that somebody may want to do. It need not be allowed.
    fn idea(&mut self, state: &State) -> (&'static str, String, Option<String>, Value) {
        let sender = self.users.choose(&mut self.random).unwrap().clone();
        let target = self.users.choose(&mut self.random).unwrap().clone();
        let (sender, target) = (sender.as_str(), target.as_str());
        let number = self.random.random_range(0..1000);
        let member = |of: &str, membership: &str| {
            let content = json!({"membership": membership, "n": number});
            ("m.room.member", Some(of.to_owned()), content)
        };
        let (event_type, state_key, content) = match self.random.random_range(0..16) {
            0..2 => (
                "m.room.topic",
                Some(String::new()),
                json!({"topic": number}),
            ),
            2 => ("m.room.name", Some(String::new()), json!({"name": number})),
            3 => (
                "org.example.state",
                Some((number % 3).to_string()),
                json!({"n": number}),
            ),
            4 => ("m.room.message", None, json!({"body": number})),
            5..8 => self.power_levels(state, target),
            8 => {
                let rule = ["public", "invite", "public"].choose(&mut self.random);
                (
                    "m.room.join_rules",
                    Some(String::new()),
                    json!({"join_rule": rule.unwrap()}),
                )
            }
            9..12 => member(sender, "join"),
            12 => member(sender, "leave"),
            13 => member(target, "leave"),
            14 => member(target, "ban"),
            _ => member(target, "invite"),
        };
        (event_type, sender.to_owned(), state_key, content)
    }

    /// The power levels of a state with one change.
    fn power_levels(
        &mut self,
        state: &State,
        target: &str,
    ) -> (&'static str, Option<String>, Value) {
        let key = (StateEventType::RoomPowerLevels, String::new());
        let mut content: Value = match state.get(&key) {
            Some(id) => serde_json::from_str(self.by_id[id].content.get()).unwrap(),
            None => json!({}),
        };
        let level = json!([0, 25, 50, 100].choose(&mut self.random).unwrap());
        match self.random.random_range(0..5) {
            0 => content["events_default"] = json!(self.random.random_range(0..30)),
            1 => content["state_default"] = json!(self.random.random_range(0..60)),
            _ => content["users"][target] = level,
        }
        ("m.room.power_levels", Some(String::new()), content)
    }

    /// Adds an event behind `prev`, if the state there, `before`, allows it.
    fn add(
        &mut self,
        prev: &[OwnedEventId],
        before: &State,
        event_type: &str,
        sender: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> bool {
        let sender = OwnedUserId::try_from(sender).unwrap();
        let is_create = event_type == "m.room.create";
        let makes_room_id = is_create && !self.rules.event_format.require_room_create_room_id;
        // Some events are sent in the same millisecond.
        self.clock += self.random.random_range(0..2);
        let depth = prev.iter().map(|id| self.by_id[id].depth).max();
        let content: CanonicalJsonObject = serde_json::from_value(content).unwrap();
        let mut draft = Draft {
            room_id: (!makes_room_id).then(|| self.room_id.clone()),
            sender: sender.clone(),
            event_type: event_type.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            content,
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(self.clock)),
            prev_events: prev.to_owned(),
            auth_events: Vec::new(),
            depth: depth.unwrap_or_default() + 1,
        };
        draft.auth_events = self.auth_events(&draft, before);
        let server: &UserId = &sender;
        let server = server.server_name();
        let pdu = draft.sign(self.rules, server, &self.keys[server]).unwrap();
        let fetch = |event_type: &StateEventType, key: &str| {
            let id = before.get(&(event_type.clone(), key.to_owned()))?;
            Some(Arc::clone(&self.by_id[id]))
        };
        if authorize(self.rules, &pdu, fetch).is_err() || self.by_id.contains_key(&pdu.event_id) {
            return false;
        }
        self.keep(Arc::new(pdu), before);
        true
    }

    /// What allows an event, where the state is this one.
    pub fn auth_events(&self, draft: &Draft, state: &State) -> Vec<OwnedEventId> {
        let keys = draft.auth_types(self.rules).unwrap();
        let auth_events = keys.iter().filter_map(|key| state.get(key).cloned());
        auth_events.collect()
    }

    /// Gives an event its place behind those that it follows; the state there is `before`.
    pub fn keep(&mut self, pdu: Arc<Pdu>, before: &State) {
        let mut after = before.clone();
        if let Some(state_key) = &pdu.state_key {
            let key = (
                StateEventType::from(&*pdu.event_type),
                state_key.to_string(),
            );
            after.insert(key, pdu.event_id.clone());
        }
        self.room_id.clone_from(&pdu.room_id);
        self.before
            .insert(pdu.event_id.clone(), Arc::new(before.clone()));
        self.after.insert(pdu.event_id.clone(), Arc::new(after));
        self.by_id.insert(pdu.event_id.clone(), Arc::clone(&pdu));
        self.events.push(pdu);
    }

    /// The state behind some events.
    pub fn resolve_at(&self, events: &[OwnedEventId]) -> State {
        let sets: Vec<_> = events.iter().map(|id| &*self.after[id]).collect();
        match sets.as_slice() {
            [] => State::new(),
            [one] => (*one).clone(),
            _ => self.resolve(&sets),
        }
    }

    /// What ruma makes of whole state sets.
    pub fn resolve(&self, sets: &[&State]) -> State {
        let chains = sets.iter().map(|set| {
            let chain = self.auth_chain(set.values());
            chain.into_iter().collect::<EventIdSet<_>>()
        });
        state_res::resolve(
            &self.rules.authorization,
            self.rules.state_res.v2_rules().unwrap(),
            sets.iter().copied(),
            chains.collect(),
            |id| self.by_id.get(id).map(Arc::clone),
            |conflicted| {
                Some(
                    self.subgraph(conflicted.values().flatten())
                        .into_iter()
                        .collect(),
                )
            },
        )
        .unwrap()
    }

    /// The events, what authorizes them, and so on to the beginning.
    pub fn auth_chain<'a>(
        &self,
        events: impl IntoIterator<Item = &'a OwnedEventId>,
    ) -> HashSet<OwnedEventId> {
        let mut chain = HashSet::new();
        let mut todo: Vec<_> = events.into_iter().cloned().collect();
        while let Some(id) = todo.pop() {
            if chain.insert(id.clone()) {
                todo.extend(self.event(&id).auth_events.iter().cloned());
            }
        }
        chain
    }

    /// The conflicted state subgraph, by the words of its definition.
    pub fn subgraph<'a>(
        &self,
        conflicted: impl IntoIterator<Item = &'a OwnedEventId>,
    ) -> HashSet<OwnedEventId> {
        let conflicted: HashSet<_> = conflicted.into_iter().collect();
        let below = self.auth_chain(conflicted.iter().copied());
        below
            .into_iter()
            .filter(|id| {
                let chain = self.auth_chain([id]);
                chain.iter().any(|id| conflicted.contains(id))
            })
            .collect()
    }

    pub fn event(&self, id: &EventId) -> &Arc<Pdu> {
        &self.by_id[id]
    }
}
