use std::{collections::HashMap, sync::Arc};

use homing_federation::{Draft, Error, Pdu, Rejection, authorize, room_version};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, RoomVersionId, UInt, UserId, events::StateEventType,
    owned_event_id, owned_room_id, room_version_rules::RoomVersionRules, server_name, user_id,
};
use serde_json::{Value, json};

use crate::{draft, object, spec_key};

/// A room in memory, whose events are made and authorized as the server does it.
struct Room {
    rules: &'static RoomVersionRules,
    id: Option<OwnedRoomId>,
    state: HashMap<(StateEventType, String), Arc<Pdu>>,
    last: Option<Arc<Pdu>>,
}

impl Room {
    /// A room made and joined by `@alice:domain`, with power levels and a join rule.
    fn new(version: &RoomVersionId, join_rule: &Value) -> Self {
        let rules = room_version::rules(version).unwrap();
        let derived = rules.authorization.room_create_event_id_as_room_id;
        let mut room = Self {
            rules,
            id: (!derived).then(|| owned_room_id!("!r:domain")),
            state: HashMap::new(),
            last: None,
        };
        let mut create = json!({"room_version": version.as_str()});
        if !rules.authorization.use_room_create_sender {
            create["creator"] = json!(alice());
        }
        room.state(alice(), "m.room.create", "", create).unwrap();
        room.state(
            alice(),
            "m.room.member",
            alice(),
            json!({"membership": "join"}),
        )
        .unwrap();
        let mut levels = json!({"users": {alice(): 100}, "events_default": 0});
        if rules.authorization.explicitly_privilege_room_creators {
            levels["users"] = json!({});
        }
        room.state(alice(), "m.room.power_levels", "", levels)
            .unwrap();
        room.state(alice(), "m.room.join_rules", "", join_rule.clone())
            .unwrap();
        room
    }

    fn draft(&self, sender: &UserId, event_type: &str, content: Value) -> Draft {
        Draft {
            room_id: self.id.clone(),
            sender: sender.to_owned(),
            event_type: event_type.to_owned(),
            state_key: None,
            content: object(content),
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u8)),
            prev_events: self.last.iter().map(|pdu| pdu.event_id.clone()).collect(),
            auth_events: vec![],
            depth: self.last.as_ref().map_or(1, |pdu| pdu.depth + 1),
        }
    }

    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        let key = (event_type.clone(), state_key.to_owned());
        self.state.get(&key).cloned()
    }

    fn send(&mut self, mut draft: Draft) -> Result<Arc<Pdu>, Rejection> {
        let types = draft.auth_types(self.rules).unwrap();
        draft.auth_events = types
            .iter()
            .filter_map(|(event_type, key)| self.get(event_type, key))
            .map(|pdu| pdu.event_id.clone())
            .collect();
        let pdu = draft
            .sign(self.rules, server_name!("domain"), &spec_key())
            .unwrap();
        authorize(self.rules, &pdu, |event_type, key| {
            self.get(event_type, key)
        })?;
        let pdu = Arc::new(pdu);
        self.id = Some(pdu.room_id.clone());
        if let Some(key) = &pdu.state_key {
            let event_type = StateEventType::from(&*pdu.event_type);
            self.state
                .insert((event_type, key.to_string()), Arc::clone(&pdu));
        }
        self.last = Some(Arc::clone(&pdu));
        Ok(pdu)
    }

    fn message(&mut self, sender: &UserId) -> Result<Arc<Pdu>, Rejection> {
        self.send(self.draft(sender, "m.room.message", json!({"body": "hi"})))
    }

    fn state(
        &mut self,
        sender: &UserId,
        event_type: &str,
        key: impl AsRef<str>,
        content: Value,
    ) -> Result<Arc<Pdu>, Rejection> {
        let mut draft = self.draft(sender, event_type, content);
        draft.state_key = Some(key.as_ref().to_owned());
        self.send(draft)
    }

    fn member(
        &mut self,
        sender: &UserId,
        of: &UserId,
        membership: &str,
    ) -> Result<Arc<Pdu>, Rejection> {
        self.state(
            sender,
            "m.room.member",
            of,
            json!({"membership": membership}),
        )
    }
}

fn alice() -> &'static UserId {
    user_id!("@alice:domain")
}

fn bob() -> &'static UserId {
    user_id!("@bob:domain")
}

#[track_caller]
fn rejected(result: Result<Arc<Pdu>, Rejection>) -> String {
    result.unwrap_err().to_string()
}

/// A conversation in every version, with what is forbidden in between.
#[test]
fn a_room_of_two() {
    for version in room_version::creatable() {
        let mut room = Room::new(&version, &json!({"join_rule": "invite"}));
        room.message(alice()).unwrap();
        assert!(
            rejected(room.message(bob())).contains("not `join`"),
            "{version}"
        );
        rejected(room.member(bob(), bob(), "join"));
        rejected(room.member(bob(), alice(), "leave"));
        room.member(alice(), bob(), "invite").unwrap();
        rejected(room.message(bob()));
        room.member(bob(), bob(), "join").unwrap();
        room.message(bob()).unwrap();
        rejected(room.state(bob(), "m.room.topic", "", json!({"topic": "mine"})));
        rejected(room.state(alice(), "org.example.own", bob(), json!({})));
        rejected(room.state(
            bob(),
            "m.room.power_levels",
            "",
            json!({"users": {bob(): 100}}),
        ));
        rejected(room.member(bob(), alice(), "ban"));
        room.member(alice(), bob(), "ban").unwrap();
        rejected(room.member(bob(), bob(), "join"));
        rejected(room.message(bob()));
        room.member(alice(), bob(), "leave").unwrap();
    }
}

#[test]
fn join_rules_by_version() {
    // Join rule, membership that a stranger asks for, and since which version it is granted.
    let table = [
        (json!({"join_rule": "public"}), "join", Some(6)),
        (json!({"join_rule": "invite"}), "join", None),
        (json!({"join_rule": "invite"}), "knock", None),
        (json!({"join_rule": "knock"}), "knock", Some(7)),
        (json!({"join_rule": "knock"}), "join", None),
        (
            json!({"join_rule": "restricted", "allow": []}),
            "join",
            None,
        ),
        (
            json!({"join_rule": "restricted", "allow": []}),
            "knock",
            None,
        ),
        (
            json!({"join_rule": "knock_restricted", "allow": []}),
            "knock",
            Some(10),
        ),
    ];
    for (join_rule, membership, since) in table {
        for version in room_version::creatable() {
            let number: u8 = version.as_str().parse().unwrap();
            let mut room = Room::new(&version, &join_rule);
            let result = room.member(bob(), bob(), membership);
            let granted = since.is_some_and(|since| number >= since);
            assert_eq!(
                result.is_ok(),
                granted,
                "{join_rule} {membership} {version}: {result:?}"
            );
        }
    }
}

/// A restricted join is granted by the word of a member who may invite.
#[test]
fn restricted_joins() {
    for version in room_version::creatable() {
        let number: u8 = version.as_str().parse().unwrap();
        let mut room = Room::new(&version, &json!({"join_rule": "restricted", "allow": []}));
        let join =
            |by: &UserId| json!({"membership": "join", "join_authorised_via_users_server": by});
        rejected(room.state(
            bob(),
            "m.room.member",
            bob(),
            join(user_id!("@carol:domain")),
        ));
        let result = room.state(bob(), "m.room.member", bob(), join(alice()));
        assert_eq!(result.is_ok(), number >= 8, "{version}: {result:?}");
    }
}

/// Version 12: creators stand above power levels and cannot be listed there, and no event names
/// the create event, which is yet required.
#[test]
fn creators_and_create_events() {
    for version in room_version::creatable() {
        let v12 = version == RoomVersionId::V12;
        let mut room = Room::new(&version, &json!({"join_rule": "public"}));
        let create = room.get(&StateEventType::RoomCreate, "").unwrap();
        let message = room.message(alice()).unwrap();
        assert_eq!(
            message.auth_events.contains(&create.event_id),
            !v12,
            "{version}"
        );
        assert_eq!(
            message.auth_events.len(),
            if v12 { 2 } else { 3 },
            "{version}"
        );

        let levels = json!({"users": {alice(): 100}, "state_default": 100});
        let listed = room.state(alice(), "m.room.power_levels", "", levels);
        assert_eq!(listed.is_err(), v12, "{version}");

        room.state
            .remove(&(StateEventType::RoomCreate, String::new()));
        assert!(
            rejected(room.message(alice())).contains("m.room.create"),
            "{version}"
        );
    }
}

#[test]
fn power_levels_must_be_integers_since_version_10() {
    for version in room_version::creatable() {
        let number: u8 = version.as_str().parse().unwrap();
        let mut room = Room::new(&version, &json!({"join_rule": "public"}));
        let mut levels = json!({"users": {bob(): "50"}});
        if number < 12 {
            levels["users"][alice().as_str()] = json!(100);
        }
        let result = room.state(alice(), "m.room.power_levels", "", levels);
        assert_eq!(result.is_ok(), number < 10, "{version}: {result:?}");
    }
}

/// What an identity server says about a user.
fn proof(user: &UserId, token: &str) -> Value {
    let mut signed = object(json!({"mxid": user, "token": token}));
    let key = spec_key();
    key.sign_json(server_name!("identity"), &mut signed)
        .unwrap();
    assert!(key.verify_key().has_signed(&signed));
    serde_json::to_value(signed).unwrap()
}

#[test]
fn invitations_by_address() {
    for version in [RoomVersionId::V6, RoomVersionId::V11, RoomVersionId::V12] {
        let mut room = Room::new(&version, &json!({"join_rule": "invite"}));
        let key = spec_key().public_key();
        let invitation = |key: &str| {
            json!({
                "display_name": "b", "key_validity_url": "https://identity/valid",
                "public_key": key,
            })
        };
        let mut several = invitation("no key");
        several["public_keys"] = json!([{"public_key": "no key"}, {"public_key": key}]);
        let other = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        for (token, content) in [
            ("t", invitation(&key)),
            ("several", several),
            ("other", invitation(other)),
            ("none", json!({})),
        ] {
            room.state(alice(), "m.room.third_party_invite", token, content)
                .unwrap();
        }
        let mut invite = |sender: &UserId, signed: Value| {
            let before = room.state.clone();
            let content = json!({
                "membership": "invite",
                "third_party_invite": {"display_name": "b", "signed": signed},
            });
            let result = room.state(sender, "m.room.member", bob(), content);
            room.state = before;
            result
        };
        invite(alice(), proof(bob(), "t")).unwrap();
        invite(alice(), proof(bob(), "several")).unwrap();
        rejected(invite(bob(), proof(bob(), "t")));
        rejected(invite(alice(), proof(alice(), "t")));
        for token in ["unknown", "other", "none"] {
            rejected(invite(alice(), proof(bob(), token)));
        }
        let mut forged = proof(bob(), "t");
        forged["token"] = json!("several");
        rejected(invite(alice(), forged));
        rejected(invite(alice(), json!({"mxid": bob(), "token": "t"})));
        room.member(alice(), bob(), "ban").unwrap();
        let content = json!({
            "membership": "invite",
            "third_party_invite": {"display_name": "b", "signed": proof(bob(), "t")},
        });
        rejected(room.state(alice(), "m.room.member", bob(), content));
    }
}

#[test]
fn malformed_member_events() {
    let room = Room::new(&RoomVersionId::V12, &json!({"join_rule": "public"}));
    let table = [
        (None, json!({"membership": "join"})),
        (Some("@alice:domain"), json!({})),
        (Some("@alice:domain"), json!({"membership": 1})),
        (
            Some("@bob:domain"),
            json!({"membership": "invite", "third_party_invite": {"signed": 1}}),
        ),
        (
            Some("@alice:domain"),
            json!({"membership": "join", "join_authorised_via_users_server": "no user"}),
        ),
    ];
    for (key, content) in table {
        let mut draft = room.draft(alice(), "m.room.member", content.clone());
        draft.state_key = key.map(str::to_owned);
        let error = draft.auth_types(room.rules).unwrap_err();
        assert!(matches!(error, Error::BadJson(_)), "{content}: {error}");
    }
}

/// The checks of an event's own `auth_events`, which no honest draft fails.
#[test]
fn foreign_auth_events() {
    let mut room = Room::new(&RoomVersionId::V11, &json!({"join_rule": "public"}));
    let good = room.message(alice()).unwrap();
    let sign = |auth_events: Vec<_>| {
        let mut draft = draft("m.room.message", json!({}));
        draft.room_id.clone_from(&room.id);
        draft.sender = alice().to_owned();
        draft.auth_events = auth_events;
        draft
            .sign(room.rules, server_name!("domain"), &spec_key())
            .unwrap()
    };
    let state = |event_type: &StateEventType, key: &str| room.get(event_type, key);
    let ids = good.auth_events.to_vec();
    authorize(room.rules, &sign(ids.clone()), state).unwrap();

    let mut unknown = ids.clone();
    unknown.push(owned_event_id!("$unknown"));
    let mut twice = ids.clone();
    twice.push(ids[0].clone());
    let rules = room.get(&StateEventType::RoomJoinRules, "").unwrap();
    let mut too_many = ids.clone();
    too_many.push(rules.event_id.clone());
    let table = [
        ("unknown", unknown),
        ("twice", twice),
        ("not needed", too_many),
        ("without the create event", ids[..2].to_vec()),
    ];
    for (what, auth_events) in table {
        authorize(room.rules, &sign(auth_events), state).expect_err(what);
    }

    // A rejected event allows nothing.
    let reject = |event_type: &StateEventType, key: &str| {
        let pdu = room.get(event_type, key)?;
        let mut copy =
            Pdu::from_canonical(pdu.event_id.clone(), pdu.json.clone(), room.rules).unwrap();
        copy.rejected = true;
        Some(Arc::new(copy))
    };
    let rejection = authorize(room.rules, &sign(ids), reject).unwrap_err();
    assert!(rejection.to_string().contains("rejected"), "{rejection}");
}
