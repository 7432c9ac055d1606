//! A room as a fake server has it that has joined it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use homing_federation::{Draft, Pdu, room_version, strict_json};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId,
    room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json};

use crate::{
    fake_server::FakeServer,
    server::{Answer, TestServer},
};

const FEDERATION: &str = "/_matrix/federation";

/// What a fake server knows of a room.
#[derive(Clone)]
pub struct FakeRoom {
    pub id: OwnedRoomId,
    pub rules: &'static RoomVersionRules,
    /// Its own user.
    pub user: OwnedUserId,
    /// The state, by type and state key.
    pub state: BTreeMap<(String, String), Pdu>,
    /// What the next event follows.
    pub latest: Vec<OwnedEventId>,
    pub depth: i64,
}

impl FakeRoom {
    /// Joins a room of a server.
    pub async fn join(fake: &FakeServer, server: &TestServer, id: &str) -> Self {
        let (mut room, join, answer) = Self::join_as(fake, server, id, "v2").await;
        for event in answer["state"].as_array().unwrap() {
            room.learn(&pdu(event, room.rules));
        }
        room.follow(&join);
        room
    }

    /// The same with a version of `send_join`; answers what was answered too. The room is not known any further.
    pub async fn join_as(
        fake: &FakeServer,
        server: &TestServer,
        id: &str,
        send_join: &str,
    ) -> (Self, Pdu, Value) {
        let user = format!("@mallory:{}", fake.name);
        let versions = ["6", "9", "10", "11", "12"].map(|version| format!("ver={version}"));
        let path = format!(
            "{FEDERATION}/v1/make_join/{id}/{user}?{}",
            versions.join("&")
        );
        let made = fake.get(server, &path).await.ok();
        let version: RoomVersionId = made["room_version"].as_str().unwrap().try_into().unwrap();
        let room = Self::new(id.try_into().unwrap(), &version, user.try_into().unwrap());
        let ids = |name: &str| serde_json::from_value(made["event"][name].clone()).unwrap();
        let join = Draft {
            prev_events: ids("prev_events"),
            auth_events: ids("auth_events"),
            depth: made["event"]["depth"].as_i64().unwrap(),
            ..room.draft(
                "m.room.member",
                Some(room.user.as_str()),
                json!({ "membership": "join" }),
            )
        };
        let join = room.sign(fake, join);
        let path = format!("{FEDERATION}/{send_join}/send_join/{id}/{}", join.event_id);
        let answer = fake.put(server, &path, value(&join)).await.ok();
        (room, join, answer)
    }

    fn new(id: OwnedRoomId, version: &RoomVersionId, user: OwnedUserId) -> Self {
        Self {
            rules: room_version::rules(version).expect("a known version"),
            id,
            user,
            state: BTreeMap::new(),
            latest: Vec::new(),
            depth: 0,
        }
    }

    /// An event of its user on top of the room.
    #[expect(clippy::needless_pass_by_value, reason = "made for the call")]
    pub fn draft(&self, kind: &str, state_key: Option<&str>, content: Value) -> Draft {
        let content = strict_json(content.to_string().as_bytes()).unwrap();
        let mut draft = Draft {
            room_id: Some(self.id.clone()),
            sender: self.user.clone(),
            event_type: kind.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            content,
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch::now(),
            prev_events: self.latest.clone(),
            auth_events: Vec::new(),
            depth: self.depth + 1,
        };
        if kind != "m.room.create" {
            let types = draft.auth_types(self.rules).unwrap();
            let known = types
                .iter()
                .filter_map(|(kind, key)| self.state.get(&(kind.to_string(), key.clone())));
            draft.auth_events = known.map(|pdu| pdu.event_id.clone()).collect();
        }
        draft
    }

    /// A message of its user on top of the room.
    pub fn message(&self, text: &str) -> Draft {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.draft("m.room.message", None, content)
    }

    pub fn sign(&self, fake: &FakeServer, draft: Draft) -> Pdu {
        draft.sign(self.rules, &fake.name, &fake.key).unwrap()
    }

    /// Says something; the next event follows it.
    pub fn say(&mut self, fake: &FakeServer, text: &str) -> Pdu {
        let pdu = self.sign(fake, self.message(text));
        self.follow(&pdu);
        pdu
    }

    /// Sets some state; the next event follows it.
    pub fn set(&mut self, fake: &FakeServer, kind: &str, key: &str, content: Value) -> Pdu {
        let pdu = self.sign(fake, self.draft(kind, Some(key), content));
        self.follow(&pdu);
        pdu
    }

    /// The next event follows this one.
    pub fn follow(&mut self, pdu: &Pdu) {
        self.latest = vec![pdu.event_id.clone()];
        self.depth = pdu.depth;
        self.learn(pdu);
    }

    /// Knows an event of the state.
    pub fn learn(&mut self, pdu: &Pdu) {
        if let Some(state_key) = &pdu.state_key {
            let key = (pdu.event_type.to_string(), state_key.to_string());
            self.state.insert(key, pdu.clone());
        }
    }

    /// Sends events in one transaction.
    pub async fn send(&self, fake: &FakeServer, to: &TestServer, pdus: &[&Pdu]) -> Answer {
        let pdus: Vec<Value> = pdus.iter().map(|pdu| value(pdu)).collect();
        transaction(fake, to, &pdus, &[]).await
    }
}

/// Sends a transaction.
pub async fn transaction(
    fake: &FakeServer,
    to: &TestServer,
    pdus: &[Value],
    edus: &[Value],
) -> Answer {
    let body = json!({
        "origin": fake.name, "origin_server_ts": 1, "pdus": pdus, "edus": edus,
    });
    fake.put(to, &path(), body).await
}

/// Where the next transaction goes.
pub fn path() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{FEDERATION}/v1/send/fake{count}")
}

/// An event as JSON.
pub fn value(pdu: &Pdu) -> Value {
    serde_json::from_str(&pdu.json).unwrap()
}

/// Reads an event without looking at its signatures.
pub fn pdu(json: &Value, rules: &RoomVersionRules) -> Pdu {
    let text = json.to_string();
    let unverified = homing_federation::Unverified::parse(&text, rules);
    unverified.unwrap().pdu
}
