//! What other servers may read of rooms: of those that show everything, without being in them, and of others nothing.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_server::FakeServer,
    server::{TestServer, User},
};

const API: &str = "/_matrix/federation/v1";

async fn open_room(alice: &User<'_>, more: Value) -> String {
    let visibility = json!({
        "type": "m.room.history_visibility",
        "content": { "history_visibility": "world_readable" },
    });
    let mut body = json!({ "preset": "public_chat", "initial_state": [visibility] });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    alice.create_room(body).await
}

/// What a text message is on the wire.
fn is_text(pdu: &Value, text: &str) -> bool {
    pdu["type"] == "m.room.message" && pdu["content"]["body"] == text
}

#[tokio::test]
async fn events_are_told() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let room = open_room(&alice, json!({})).await;
    let event = alice.say(&room, "hello").await;
    let told = fake
        .get(&server, &format!("{API}/event/{event}"))
        .await
        .ok();
    assert_eq!(told["origin"], json!(server.name()));
    assert!(told["origin_server_ts"].is_i64());
    assert_eq!(told["pdus"].as_array().unwrap().len(), 1);
    let pdu = &told["pdus"][0];
    assert!(is_text(pdu, "hello"), "{pdu}");
    assert!(pdu["hashes"]["sha256"].is_string() && pdu["signatures"].is_object());
    assert!(pdu.get("event_id").is_none() && pdu.get("unsigned").is_none());
    let unknown = format!("{API}/event/$unknown");
    fake.get(&server, &unknown).await.fails(404, "M_NOT_FOUND");

    let ts = pdu["origin_server_ts"].as_i64().unwrap();
    let path = format!("{API}/timestamp_to_event/{room}?ts={ts}&dir=f");
    let near = fake.get(&server, &path).await.ok();
    assert_eq!(near, json!({ "event_id": event, "origin_server_ts": ts }));
    let path = format!("{API}/timestamp_to_event/{room}?ts={}&dir=f", ts + 60_000);
    fake.get(&server, &path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn state_and_what_it_rests_on_are_told() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = open_room(&alice, json!({ "name": "Before" })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let path = format!("/rooms/{room}/state/m.room.name");
    let name = alice.put(&path, json!({ "name": "After" })).await.ok();
    let name = name["event_id"].as_str().unwrap();
    let last = alice.say(&room, "last").await;

    for (event, expected) in [(name, "Before"), (&last, "After")] {
        let path = format!("{API}/state/{room}?event_id={event}");
        let told = fake.get(&server, &path).await.ok();
        let pdus = told["pdus"].as_array().unwrap();
        let of =
            |kind: &str| -> Vec<&Value> { pdus.iter().filter(|pdu| pdu["type"] == kind).collect() };
        assert_eq!(of("m.room.name")[0]["content"]["name"], expected);
        assert_eq!(of("m.room.member").len(), 2);
        assert_eq!(of("m.room.create").len(), 1);
        let path = format!("{API}/state_ids/{room}?event_id={event}");
        let ids = fake.get(&server, &path).await.ok();
        assert_eq!(ids["pdu_ids"].as_array().unwrap().len(), pdus.len());
        let chain = told["auth_chain"].as_array().unwrap();
        assert_eq!(ids["auth_chain_ids"].as_array().unwrap().len(), chain.len());
        let kinds: Vec<_> = chain
            .iter()
            .map(|pdu| pdu["type"].as_str().unwrap())
            .collect();
        for kind in ["m.room.member", "m.room.power_levels", "m.room.join_rules"] {
            assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
        }
        assert!(!kinds.contains(&"m.room.name"));
    }
    let path = format!("{API}/event_auth/{room}/{last}");
    let told = fake.get(&server, &path).await.ok();
    let chain = told["auth_chain"].as_array().unwrap();
    assert!(chain.iter().any(|pdu| pdu["type"] == "m.room.power_levels"));
    assert!(chain.iter().all(|pdu| pdu["state_key"].is_string()));

    for path in [
        format!("{API}/state/{room}?event_id=$unknown"),
        format!("{API}/state_ids/{room}?event_id=$unknown"),
        format!("{API}/event_auth/{room}/$unknown"),
    ] {
        fake.get(&server, &path).await.fails(404, "M_NOT_FOUND");
    }
    let missing = format!("{API}/state/{room}");
    fake.get(&server, &missing)
        .await
        .fails(400, "M_MISSING_PARAM");
}

/// The texts of messages.
fn texts(pdus: &Value) -> Vec<&str> {
    let pdus = pdus.as_array().unwrap().iter();
    pdus.filter_map(|pdu| pdu["content"]["body"].as_str())
        .collect()
}

#[tokio::test]
async fn the_past_is_told_backwards() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let room = open_room(&alice, json!({})).await;
    let mut events = Vec::new();
    for text in ["1", "2", "3", "4", "5"] {
        events.push(alice.say(&room, text).await);
    }
    let path = format!("{API}/backfill/{room}?v={}&limit=3", events[3]);
    let told = fake.get(&server, &path).await.ok();
    assert_eq!(told["origin"], json!(server.name()));
    assert_eq!(texts(&told["pdus"]), ["4", "3", "2"]);
    let path = format!(
        "{API}/backfill/{room}?v={}&v={}&limit=2",
        events[0], events[4]
    );
    let told = fake.get(&server, &path).await.ok();
    assert_eq!(texts(&told["pdus"]), ["5", "4"]);
    let path = format!("{API}/backfill/{room}?v={}&limit=1000000", events[4]);
    let told = fake.get(&server, &path).await.ok();
    let all = told["pdus"].as_array().unwrap();
    // What comes before is not for everybody.
    assert_eq!(all.last().unwrap()["type"], "m.room.history_visibility");
    let path = format!("{API}/backfill/{room}?v=$unknown&limit=5");
    let told = fake.get(&server, &path).await.ok();
    assert_eq!(told["pdus"], json!([]));
    let many: String = (0..101).map(|n| format!("v=$x{n}&")).collect();
    let path = format!("{API}/backfill/{room}?{many}limit=5");
    fake.get(&server, &path).await.fails(400, "M_INVALID_PARAM");

    let path = format!("{API}/get_missing_events/{room}");
    let ask = async |body: Value| fake.post(&server, &path, body).await.ok();
    let between = json!({ "earliest_events": [events[0]], "latest_events": [events[4]] });
    assert_eq!(
        texts(&ask(between.clone()).await["events"]),
        ["2", "3", "4"]
    );
    let mut few = between.clone();
    few["limit"] = json!(2);
    assert_eq!(texts(&ask(few).await["events"]), ["3", "4"]);
    let depth = fake
        .get(&server, &format!("{API}/event/{}", events[2]))
        .await;
    let mut shallow = between.clone();
    shallow["min_depth"] = depth.ok()["pdus"][0]["depth"].clone();
    assert_eq!(texts(&ask(shallow).await["events"]), ["3", "4"]);
    let mut nothing = between.clone();
    nothing["latest_events"] = nothing["earliest_events"].clone();
    assert_eq!(ask(nothing).await["events"], json!([]));
    // Rooms may have more ends than are looked at.
    let mut ends = vec![events[0].clone()];
    ends.extend((0..200).map(|n| format!("$x{n}")));
    let ends = json!({ "earliest_events": ends, "latest_events": [events[4]] });
    assert_eq!(texts(&ask(ends).await["events"]), ["2", "3", "4"]);
    let everything = json!({ "earliest_events": [], "latest_events": [events[4]], "limit": 100 });
    let all = ask(everything).await;
    assert!(all["events"].as_array().unwrap().len() <= 20);
}

#[tokio::test]
async fn many_more_events_than_are_told() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let room = open_room(&alice, json!({})).await;
    let mut last = String::new();
    for number in 0..130 {
        last = alice.say(&room, &number.to_string()).await;
    }
    let path = format!("{API}/backfill/{room}?v={last}&limit=500");
    let told = fake.get(&server, &path).await.ok();
    assert_eq!(texts(&told["pdus"]).len(), 100);
    let body = json!({ "earliest_events": [], "latest_events": [last], "limit": 500 });
    let path = format!("{API}/get_missing_events/{room}");
    let told = fake.post(&server, &path, body).await.ok();
    let texts = texts(&told["events"]);
    assert_eq!((texts.len(), texts[0], texts[19]), (20, "109", "128"));
}

#[tokio::test]
async fn strangers_read_nothing() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let shared = alice.create_room(json!({ "preset": "public_chat" })).await;
    let deny = json!({
        "type": "m.room.server_acl",
        "content": { "allow": ["*"], "deny": ["localhost", "loc*"] },
    });
    let denied = open_room(&alice, json!({})).await;
    let acl = format!("/rooms/{denied}/state/m.room.server_acl");
    alice.put(&acl, deny["content"].clone()).await.ok();
    for room in [&*shared, &*denied, "!unknown:localhost"] {
        let event = if room.starts_with("!unknown") {
            "$unknown".to_owned()
        } else {
            alice.say(room, "secret").await
        };
        for path in [
            format!("{API}/state/{room}?event_id={event}"),
            format!("{API}/state_ids/{room}?event_id={event}"),
            format!("{API}/event_auth/{room}/{event}"),
            format!("{API}/backfill/{room}?v={event}&limit=5"),
            format!("{API}/timestamp_to_event/{room}?ts=0&dir=f"),
        ] {
            fake.get(&server, &path).await.fails(403, "M_FORBIDDEN");
        }
        let body = json!({ "earliest_events": [], "latest_events": [event] });
        let path = format!("{API}/get_missing_events/{room}");
        fake.post(&server, &path, body)
            .await
            .fails(403, "M_FORBIDDEN");
        if event != "$unknown" {
            let path = format!("{API}/event/{event}");
            fake.get(&server, &path).await.fails(403, "M_FORBIDDEN");
        }
    }
}

#[tokio::test]
async fn what_was_said_before_a_room_was_opened_is_not_told() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let before = alice.say(&room, "before").await;
    let path = format!("/rooms/{room}/state/m.room.history_visibility");
    let open = json!({ "history_visibility": "world_readable" });
    alice.put(&path, open).await.ok();
    let after = alice.say(&room, "after").await;
    let path = format!("{API}/event/{before}");
    fake.get(&server, &path).await.fails(403, "M_FORBIDDEN");
    let path = format!("{API}/state/{room}?event_id={before}");
    fake.get(&server, &path).await.fails(403, "M_FORBIDDEN");
    let told = fake
        .get(&server, &format!("{API}/event/{after}"))
        .await
        .ok();
    assert!(is_text(&told["pdus"][0], "after"));
    let path = format!("{API}/backfill/{room}?v={after}&limit=10");
    let told = fake.get(&server, &path).await.ok();
    assert_eq!(texts(&told["pdus"]), ["after"]);
    let unsigned = server.request(Method::GET, &path, None, None).await;
    unsigned.fails(401, "M_UNAUTHORIZED");
}
