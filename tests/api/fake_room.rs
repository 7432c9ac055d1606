//! A room as a fake server has it: one that it has joined, or one that it has made and lets others into.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::{Json, response::IntoResponse as _};
use homing_federation::{Draft, Pdu, room_version, strict_json};
use reqwest::Method;
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId,
    RoomVersionId, canonical_json::redact_in_place, room_version_rules::RoomVersionRules,
    signatures::content_hash,
};
use serde_json::{Value, json};

use crate::{
    fake_server::{FakeServer, Recorded},
    server::{Answer, TestServer},
};

const FEDERATION: &str = "/_matrix/federation";

/// What a fake server knows of a room.
#[derive(Clone)]
pub struct FakeRoom {
    pub id: OwnedRoomId,
    pub version: RoomVersionId,
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
        let room = Self::new(id.try_into().unwrap(), version, user.try_into().unwrap());
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

    /// Makes a public room.
    pub fn create(fake: &FakeServer, version: &str) -> Self {
        let version: RoomVersionId = version.try_into().unwrap();
        let user = format!("@mallory:{}", fake.name);
        let id = format!("!fake{:x}:{}", rand::random::<u64>(), fake.name);
        let mut room = Self::new(id.try_into().unwrap(), version, user.try_into().unwrap());
        // From version 12 on the id is made of the event.
        let number = rand::random::<u32>();
        let mut content =
            json!({ "room_version": room.version.as_str(), "org.example.number": number });
        if !room.rules.authorization.use_room_create_sender {
            content["creator"] = room.user.as_str().into();
        }
        let mut create = room.draft("m.room.create", Some(""), content);
        if !room.rules.event_format.require_room_create_room_id {
            create.room_id = None;
        }
        let create = room.sign(fake, create);
        room.id = create.room_id.clone();
        room.follow(&create);
        let user = room.user.to_string();
        let member = json!({ "membership": "join" });
        room.set(fake, "m.room.member", &user, member);
        room.set(fake, "m.room.power_levels", "", room.levels());
        let rules = json!({ "join_rule": "public" });
        room.set(fake, "m.room.join_rules", "", rules);
        room
    }

    fn levels(&self) -> Value {
        if self.rules.authorization.explicitly_privilege_room_creators {
            json!({})
        } else {
            json!({ "users": { self.user.as_str(): 100 } })
        }
    }

    fn new(id: OwnedRoomId, version: RoomVersionId, user: OwnedUserId) -> Self {
        Self {
            rules: room_version::rules(&version).expect("a known version"),
            id,
            version,
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

    /// An event of any size, right in all else. `bytes` is its size in canonical JSON, without what is not counted.
    pub fn sign_sized(
        &self,
        fake: &FakeServer,
        (kind, state_key): (&str, Option<&str>),
        mut content: Value,
        bytes: usize,
    ) -> OfSize {
        let small = self.sign(fake, self.draft(kind, state_key, content.clone()));
        let missing = bytes - small.json.len() - r#","padding":"""#.len();
        content["padding"] = "a".repeat(missing).into();
        let mut event = value(&small);
        event["content"] = content;
        let signed = self.sign_again(fake, event).unwrap();
        let size = serde_json::from_value::<CanonicalJsonObject>(signed.json.clone()).unwrap();
        let size = serde_json::to_string(&size).unwrap().len();
        assert_eq!(size, bytes, "the size that was asked for");
        signed
    }

    /// An event of which something was changed, with hash and signature as if its server had made it so; `None` if it is too
    /// odd for that.
    pub fn sign_again(&self, fake: &FakeServer, mut event: Value) -> Option<OfSize> {
        let object = event.as_object_mut()?;
        object.remove("signatures");
        object.remove("hashes");
        let mut object: CanonicalJsonObject = serde_json::from_value(event).ok()?;
        let hash = content_hash(&object).ok()?.encode();
        let hashes = CanonicalJsonObject::from([("sha256".to_owned(), hash.into())]);
        object.insert("hashes".to_owned(), hashes.into());
        let mut signed = object.clone();
        redact_in_place(&mut signed, &self.rules.redaction, None).ok()?;
        fake.key.sign_json(&fake.name, &mut signed).ok()?;
        object.insert("signatures".to_owned(), signed["signatures"].clone());
        let text = serde_json::to_string(&object).ok()?;
        Some(OfSize {
            id: homing_federation::received::event_id_of(&text, self.rules)?,
            json: serde_json::from_str(&text).ok()?,
        })
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

    /// The state as other servers are told.
    pub fn state(&self) -> Vec<Value> {
        self.state.values().map(value).collect()
    }

    /// What a server is answered that wants to make a member event.
    pub fn template(&self, user: &str, membership: &str) -> Value {
        let content = json!({ "membership": membership });
        let draft = Draft {
            sender: user.try_into().unwrap(),
            ..self.draft("m.room.member", Some(user), content)
        };
        let types = draft.auth_types(self.rules).unwrap();
        let auth: Vec<_> = types
            .iter()
            .filter_map(|(kind, key)| self.state.get(&(kind.to_string(), key.clone())))
            .map(|pdu| pdu.event_id.clone())
            .collect();
        let event = json!({
            "room_id": self.id, "sender": user, "state_key": user, "type": "m.room.member",
            "content": { "membership": membership }, "depth": self.depth + 1, "origin_server_ts": 1,
            "prev_events": self.latest, "auth_events": auth,
        });
        json!({ "room_version": self.version.as_str(), "event": event })
    }

    /// What a server is answered whose user has joined.
    pub fn welcome(&self, join: &Value) -> Value {
        json!({
            "origin": self.user.server_name(), "members_omitted": false, "event": join,
            "state": self.state(), "auth_chain": self.state(),
        })
    }

    /// Lets everybody in whom `fake` is asked about; `welcome` may change what they are answered.
    pub fn host(
        &self,
        fake: &FakeServer,
        welcome: impl Fn(&mut Value) + Clone + Send + Sync + 'static,
    ) {
        self.prepares(fake, "join", |_| {});
        let room = self.clone();
        fake.on(
            Method::PUT,
            &format!("{FEDERATION}/v2/send_join/{}", room.id),
            move |request| {
                let mut answer = room.welcome(&request.body);
                welcome(&mut answer);
                Json(answer).into_response()
            },
        );
    }

    /// Answers who wants to make a member event with a template that `change` has changed.
    pub fn prepares(
        &self,
        fake: &FakeServer,
        membership: &'static str,
        change: impl Fn(&mut Value) + Send + Sync + 'static,
    ) {
        let room = self.clone();
        let start = format!("{FEDERATION}/v1/make_{membership}/{}/", room.id);
        fake.on(Method::GET, &start.clone(), move |request: &Recorded| {
            let user = request.path[start.len()..].split('?').next().unwrap();
            let mut answer = room.template(user, membership);
            change(&mut answer);
            Json(answer).into_response()
        });
    }

    /// Sends events in one transaction.
    pub async fn send(&self, fake: &FakeServer, to: &TestServer, pdus: &[&Pdu]) -> Answer {
        let pdus: Vec<Value> = pdus.iter().map(|pdu| value(pdu)).collect();
        transaction(fake, to, &pdus, &[]).await
    }
}

/// An event that may be too large for one.
#[derive(Clone)]
pub struct OfSize {
    pub id: OwnedEventId,
    pub json: Value,
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

/// What is answered for an event of a transaction: `None` if nothing, else whether there was an error.
pub fn outcome(answer: &Value, event_id: &str) -> Option<bool> {
    let of_event = answer["pdus"].get(event_id)?;
    Some(of_event.get("error").is_some())
}
