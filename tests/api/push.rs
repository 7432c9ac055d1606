//! What push gateways are told ("Push Notifications", "Push Gateway API").

use serde_json::{Value, json};

use crate::{
    push_gateway::{Gateway, reachable, set},
    server::{TestServer, User},
    unread,
};

/// A room of alice, and those who have joined it, on a server that reaches gateways.
struct Scene<'s> {
    room: String,
    alice: User<'s>,
    bob: User<'s>,
    carol: User<'s>,
}

/// The room has three members, so that it is not one between two people.
async fn scene(server: &TestServer) -> Scene<'_> {
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let (bob, carol) = (server.register("bob").await, server.register("carol").await);
    for user in [&bob, &carol] {
        user.post(&format!("/join/{room}"), json!({})).await.ok();
    }
    Scene {
        room,
        alice,
        bob,
        carol,
    }
}

/// Sends an event; answers its id.
async fn send(user: &User<'_>, room: &str, kind: &str, content: Value) -> String {
    let txn = rand::random::<u64>();
    let path = format!("/rooms/{room}/send/{kind}/{txn}");
    let answer = user.put(&path, content).await.ok();
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn set_state(user: &User<'_>, room: &str, kind: &str, key: &str, content: Value) -> String {
    let path = format!("/rooms/{room}/state/{kind}/{key}");
    let answer = user.put(&path, content).await.ok();
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn read(user: &User<'_>, room: &str, event: &str) {
    let path = format!("/rooms/{room}/receipt/m.read/{event}");
    user.post(&path, json!({})).await.ok();
}

async fn put_rule(user: &User<'_>, path: &str, rule: Value) {
    user.put(&format!("/pushrules/global/{path}"), rule)
        .await
        .ok();
}

fn text(body: &str) -> Value {
    json!({ "msgtype": "m.text", "body": body })
}

#[expect(clippy::needless_pass_by_value, reason = "made for the call")]
fn mentioning(body: &str, mentions: Value) -> Value {
    json!({ "msgtype": "m.text", "body": body, "m.mentions": mentions })
}

#[tokio::test]
async fn a_gateway_is_told_all_of_an_event_or_only_which_it_is() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let Scene {
        room, alice, bob, ..
    } = scene(&server).await;
    alice
        .put(
            &format!("/profile/{}/displayname", alice.id),
            json!({ "displayname": "Alice A." }),
        )
        .await
        .ok();
    set_state(
        &alice,
        &room,
        "m.room.name",
        "",
        json!({ "name": "The room" }),
    )
    .await;
    let alias = "#room:localhost";
    alice
        .put(
            "/directory/room/%23room:localhost",
            json!({ "room_id": room }),
        )
        .await
        .ok();
    set_state(
        &alice,
        &room,
        "m.room.canonical_alias",
        "",
        json!({ "alias": alias }),
    )
    .await;

    let mut full = gateway.pusher("full");
    full["data"]["default_payload"] = json!({ "aps": { "sound": "x" } });
    set(&bob, full).await.ok();
    let mut brief = gateway.pusher("brief");
    brief["data"]["format"] = "event_id_only".into();
    brief["data"]["custom"] = json!([1]);
    set(&bob, brief).await.ok();

    let content = mentioning("hello bob", json!({ "user_ids": [bob.id] }));
    let event = send(&alice, &room, "m.room.message", content.clone()).await;
    let mut told = gateway.wait_for("full", &event).await;
    let set_at = told["devices"][0]["pushkey_ts"].take().as_i64().unwrap();
    assert!(
        (chrono::Utc::now().timestamp() - set_at).abs() < 60,
        "{set_at}"
    );
    assert_eq!(
        told,
        json!({
            "event_id": event,
            "room_id": room,
            "type": "m.room.message",
            "sender": alice.id,
            "sender_display_name": "Alice A.",
            "room_name": "The room",
            "room_alias": alias,
            "content": content,
            "prio": "high",
            "counts": { "unread": 1 },
            "devices": [{
                "app_id": "org.example.app",
                "pushkey": "full",
                "pushkey_ts": null,
                "data": { "default_payload": { "aps": { "sound": "x" } } },
                "tweaks": { "highlight": true, "sound": "default" },
            }],
        })
    );
    let mut told = gateway.wait_for("brief", &event).await;
    told["devices"][0]["pushkey_ts"].take();
    assert_eq!(
        told,
        json!({
            "event_id": event,
            "room_id": room,
            "prio": "high",
            "counts": { "unread": 1 },
            "devices": [{
                "app_id": "org.example.app",
                "pushkey": "brief",
                "pushkey_ts": null,
                "data": { "format": "event_id_only", "custom": [1] },
            }],
        })
    );
}

/// An event that is told: with which tweaks, and whether it is urgent.
type Told = (String, Value, &'static str);

fn told(gateway: &Gateway, pushkey: &str) -> Vec<(String, Value, String)> {
    let told = gateway.told_to(pushkey).into_iter();
    let told = told.filter(|told| told.get("event_id").is_some());
    told.map(|told| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let tweaks = told["devices"][0]["tweaks"].clone();
        (text(&told["event_id"]), tweaks, text(&told["prio"]))
    })
    .collect()
}

fn expected(told: Vec<Told>) -> Vec<(String, Value, String)> {
    let told = told.into_iter();
    told.map(|(event, tweaks, prio)| (event, tweaks, prio.to_owned()))
        .collect()
}

#[tokio::test]
async fn the_predefined_rules_say_what_is_told() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let Scene {
        room,
        alice,
        bob,
        carol,
    } = scene(&server).await;
    let dave = server.register("dave").await;
    gateway.set(&bob, "bob").await;
    let loud = json!({ "highlight": true, "sound": "default" });
    let highlight = json!({ "highlight": true });
    let ring = json!({ "sound": "ring" });
    let sound = json!({ "sound": "default" });
    let relation = |rel_type: &str, event: &str| {
        let mut content = text("related");
        content["m.relates_to"] = json!({ "rel_type": rel_type, "event_id": event, "key": "+" });
        content
    };
    let mut wanted: Vec<Told> = Vec::new();

    let first = send(&alice, &room, "m.room.message", text("hello you")).await;
    wanted.push((first.clone(), json!({}), "low"));
    let notice = json!({ "msgtype": "m.notice", "body": "bob" });
    send(&alice, &room, "m.room.message", notice).await;
    let mention = mentioning("you", json!({ "user_ids": [bob.id] }));
    let mention = send(&carol, &room, "m.room.message", mention).await;
    wanted.push((mention, loud.clone(), "high"));
    let other = mentioning("somebody else", json!({ "user_ids": [carol.id] }));
    let other = send(&alice, &room, "m.room.message", other).await;
    wanted.push((other, json!({}), "low"));
    let all = mentioning("all", json!({ "room": true }));
    let by_alice = send(&alice, &room, "m.room.message", all.clone()).await;
    wanted.push((by_alice, highlight.clone(), "high"));
    let by_carol = send(&carol, &room, "m.room.message", all).await;
    wanted.push((by_carol, json!({}), "low"));
    send(
        &alice,
        &room,
        "m.reaction",
        relation("m.annotation", &first),
    )
    .await;
    let mut edit = relation("m.replace", &first);
    edit["m.new_content"] = mentioning("edited", json!({}));
    send(&alice, &room, "m.room.message", edit).await;
    let reply = send(
        &alice,
        &room,
        "m.room.message",
        relation("m.thread", &first),
    )
    .await;
    wanted.push((reply, json!({}), "low"));
    let secret = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x" });
    let secret_id = send(&alice, &room, "m.room.encrypted", secret.clone()).await;
    wanted.push((secret_id, json!({}), "high"));
    let call = json!({ "call_id": "1", "version": "1", "lifetime": 1, "offer": {} });
    let call = send(&alice, &room, "m.call.invite", call).await;
    wanted.push((call, ring, "high"));
    send(&alice, &room, "org.example.other", text("you")).await;
    send(&bob, &room, "m.room.message", text("mine")).await;
    set_state(&alice, &room, "m.room.topic", "", json!({ "topic": "bob" })).await;
    set_state(
        &alice,
        &room,
        "m.room.server_acl",
        "",
        json!({ "allow": ["*"] }),
    )
    .await;
    dave.post(&format!("/join/{room}"), json!({})).await.ok();
    dave.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();

    // Between two people all is louder.
    let two = alice.create_room(json!({ "preset": "private_chat" })).await;
    alice
        .post(
            &format!("/rooms/{two}/invite"),
            json!({ "user_id": bob.id }),
        )
        .await
        .ok();
    let invite = gateway.wait(|told| told["type"] == "m.room.member").await;
    assert_eq!(invite["content"]["membership"], "invite");
    assert_eq!(invite["user_is_target"], true);
    assert_eq!(invite["room_id"], json!(two));
    let id = invite["event_id"].as_str().unwrap().to_owned();
    wanted.push((id, sound.clone(), "high"));
    bob.post(&format!("/join/{two}"), json!({})).await.ok();
    let one_to_one = send(&alice, &two, "m.room.message", text("hi")).await;
    wanted.push((one_to_one, sound.clone(), "high"));
    let secret = send(&alice, &two, "m.room.encrypted", secret).await;
    wanted.push((secret, sound, "high"));
    let tombstone = json!({ "body": "gone", "replacement_room": "!x:localhost" });
    let tombstone = set_state(&alice, &two, "m.room.tombstone", "", tombstone).await;
    wanted.push((tombstone.clone(), highlight, "high"));

    gateway.wait_for("bob", &tombstone).await;
    assert_eq!(told(&gateway, "bob"), expected(wanted));
}

#[tokio::test]
async fn a_name_in_the_text_is_a_mention_where_the_client_does_not_say_whom_it_mentions() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let Scene {
        room,
        alice,
        bob,
        carol,
    } = scene(&server).await;
    let name = json!({ "displayname": "Captain Builder" });
    let path = format!("/profile/{}/displayname", bob.id);
    bob.put(&path, name).await.ok();
    gateway.set(&bob, "bob").await;
    let loud = json!({ "highlight": true, "sound": "default" });
    let highlight = json!({ "highlight": true });
    let nobody = json!({ "user_ids": [] });
    let mut wanted: Vec<Told> = Vec::new();
    for (who, content, tweaks) in [
        (&alice, text("hello Bob"), loud.clone()),
        (&alice, text("hello captain builder!"), loud),
        (&alice, text("hello bobby"), json!({})),
        (&alice, mentioning("hello bob", nobody), json!({})),
        (&alice, text("hello @room"), highlight),
        (&carol, text("hello @room"), json!({})),
    ] {
        let prio = if tweaks == json!({}) { "low" } else { "high" };
        let event = send(who, &room, "m.room.message", content).await;
        wanted.push((event, tweaks, prio));
    }
    let (last, ..) = wanted.last().unwrap();
    gateway.wait_for("bob", last).await;
    assert_eq!(told(&gateway, "bob"), expected(wanted));
}

#[tokio::test]
async fn all_kinds_of_events_are_told_as_the_rules_say() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let Scene {
        room, alice, bob, ..
    } = scene(&server).await;
    gateway.set(&bob, "bob").await;
    let mut events = Vec::new();
    for (kind, content) in unread::messages(&alice.id, &bob.id) {
        events.push(send(&alice, &room, kind, content).await);
    }
    for (kind, content) in unread::state_events() {
        let key = if kind == "m.room.member" {
            &alice.id
        } else {
            ""
        };
        events.push(set_state(&alice, &room, kind, key, content).await);
    }
    let mut wanted = Vec::new();
    for event in &events {
        let json = bob.get(&format!("/rooms/{room}/event/{event}")).await.ok();
        if unread::notifies(&bob, &room, &json).await.1 {
            wanted.push(event.clone());
        }
    }
    assert!(wanted.len() > 5 && wanted.len() < events.len());
    gateway.wait_for("bob", wanted.last().unwrap()).await;
    assert_eq!(gateway.events("bob"), wanted);
}

#[tokio::test]
async fn people_and_rooms_are_muted_and_single_words_are_heard() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let Scene {
        room,
        alice,
        bob,
        carol,
    } = scene(&server).await;
    gateway.set(&bob, "bob").await;
    let mut wanted = Vec::new();

    // Only mentions: what clients set for a room.
    put_rule(&bob, &format!("room/{room}"), json!({ "actions": [] })).await;
    alice.say(&room, "not to be heard").await;
    let mention = mentioning("you", json!({ "user_ids": [bob.id] }));
    wanted.push(send(&alice, &room, "m.room.message", mention.clone()).await);
    // Words are looked for before that.
    let word = json!({ "pattern": "cake", "actions": ["notify", { "set_tweak": "sound", "value": "yum" }] });
    put_rule(&bob, "content/cake", word).await;
    wanted.push(alice.say(&room, "there is cake").await);
    // Nothing at all.
    let mute = json!({
        "conditions": [{ "kind": "event_match", "key": "room_id", "pattern": room }], "actions": [],
    });
    put_rule(&bob, &format!("override/{room}"), mute).await;
    send(&alice, &room, "m.room.message", mention).await;
    let rule = format!("/pushrules/global/override/{room}");
    bob.delete(&rule).await.ok();
    bob.delete(&format!("/pushrules/global/room/{room}"))
        .await
        .ok();

    // Conditions that only rules of one's own have.
    for (id, condition) in [
        ("name", json!({ "kind": "contains_display_name" })),
        (
            "by-power",
            json!({ "kind": "sender_notification_permission", "key": "room" }),
        ),
        ("count", json!({ "kind": "room_member_count", "is": ">=3" })),
    ] {
        let about =
            json!({ "kind": "event_match", "key": "content.msgtype", "pattern": "m.notice" });
        let actions = json!(["notify", { "set_tweak": "sound", "value": id }]);
        let rule = json!({ "conditions": [condition, about], "actions": actions });
        put_rule(&bob, &format!("override/{id}"), rule).await;
        let notice = json!({ "msgtype": "m.notice", "body": "hello bob" });
        send(
            &carol,
            &room,
            "m.room.message",
            json!({ "msgtype": "m.text", "body": "-" }),
        )
        .await;
        let told = send(&alice, &room, "m.room.message", notice).await;
        let told = gateway.wait_for("bob", &told).await;
        assert_eq!(told["devices"][0]["tweaks"]["sound"], id);
        bob.delete(&format!("/pushrules/global/override/{id}"))
            .await
            .ok();
    }
    wanted = gateway.events("bob");

    // One person louder than others, and one not at all.
    put_rule(
        &bob,
        &format!("sender/{}", alice.id),
        json!({ "actions": [] }),
    )
    .await;
    alice.say(&room, "muted").await;
    wanted.push(carol.say(&room, "not muted").await);
    bob.delete(&format!("/pushrules/global/sender/{}", alice.id))
        .await
        .ok();
    let ignored = json!({ "ignored_users": { &carol.id: {} } });
    let path = format!("/user/{}/account_data/m.ignored_user_list", bob.id);
    bob.put(&path, ignored).await.ok();
    let mention = mentioning("you", json!({ "user_ids": [bob.id] }));
    send(&carol, &room, "m.room.message", mention).await;
    let theirs = carol.create_room(json!({ "invite": [bob.id] })).await;

    // A thread of which one hears nothing.
    let root = alice.say(&room, "root").await;
    wanted.push(root.clone());
    let mute = json!({ "actions": [], "conditions": [{
        "kind": "event_property_is", "key": r"content.m\.relates_to.event_id", "value": root,
    }]});
    put_rule(&bob, "override/thread", mute).await;
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let reply = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relation });
    send(&alice, &room, "m.room.message", reply).await;

    // Nothing from anywhere.
    let master = "/pushrules/global/override/.m.rule.master/enabled";
    bob.put(master, json!({ "enabled": true })).await.ok();
    alice.say(&room, "nothing").await;
    bob.put(master, json!({ "enabled": false })).await.ok();

    let last = alice.say(&room, "last").await;
    wanted.push(last.clone());
    gateway.wait_for("bob", &last).await;
    assert_eq!(gateway.events("bob"), wanted);
    let all = gateway.told_to("bob");
    assert!(all.iter().all(|told| told["room_id"] != json!(theirs)));
    assert_eq!(all[1]["devices"][0]["tweaks"], json!({ "sound": "yum" }));
}

#[tokio::test]
async fn the_badge_goes_up_and_down() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let Scene {
        room, alice, bob, ..
    } = scene(&server).await;
    gateway.set(&bob, "bob").await;
    let unread = |told: &Value| told["counts"]["unread"].as_i64();
    let mut last = String::new();
    for count in 1..=3 {
        last = alice.say(&room, "x").await;
        let told = gateway.wait_for("bob", &last).await;
        assert_eq!(unread(&told), Some(count));
    }
    let root = last.clone();
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let reply = json!({ "msgtype": "m.text", "body": "x", "m.relates_to": relation });
    let reply = send(&alice, &room, "m.room.message", reply).await;
    assert_eq!(unread(&gateway.wait_for("bob", &reply).await), Some(4));
    let body = json!({ "preset": "private_chat", "invite": [bob.id] });
    let other = alice.create_room(body).await;
    let invite = gateway.wait(|told| told["room_id"] == json!(other)).await;
    assert_eq!(unread(&invite), Some(5), "an invite waits too");

    let path = format!("/rooms/{room}/receipt/m.read/{last}");
    bob.post(&path, json!({ "thread_id": "main" })).await.ok();
    let badge = gateway.wait_for_badge("bob", 2).await;
    assert_eq!(badge["devices"][0]["app_id"], "org.example.app", "{badge}");
    assert!(badge.get("room_id").is_none(), "{badge}");
    // To read the same once more changes nothing.
    bob.post(&path, json!({})).await.ok();
    bob.post(&format!("/rooms/{other}/leave"), json!({}))
        .await
        .ok();
    gateway.wait_for_badge("bob", 1).await;
    read(&bob, &room, &reply).await;
    gateway.wait_for_badge("bob", 0).await;
    let path = "/notifications?limit=1";
    let listed = bob.get(path).await.ok();
    assert_eq!(listed["notifications"][0]["read"], true, "{listed}");

    // What is read once more, or sent, is no news.
    read(&bob, &room, &reply).await;
    bob.say(&room, "mine").await;
    let last = alice.say(&room, "last").await;
    assert_eq!(unread(&gateway.wait_for("bob", &last).await), Some(1));
    let badges: Vec<_> = gateway.told_to("bob").iter().map(unread).collect();
    assert_eq!(badges, [1, 2, 3, 4, 5, 2, 1, 0, 1].map(Some));
}

#[tokio::test]
async fn what_is_from_before_one_came_or_set_a_pusher_is_no_news() {
    let server = TestServer::start_with(reachable).await;
    let gateway = Gateway::start().await;
    let Scene {
        room, alice, bob, ..
    } = scene(&server).await;
    alice.say(&room, "before").await;
    gateway.set(&bob, "bob").await;
    let erin = server.register("erin").await;
    gateway.set(&erin, "erin").await;
    let first = alice.say(&room, "first").await;
    gateway.wait_for("bob", &first).await;
    erin.post(&format!("/join/{room}"), json!({})).await.ok();
    let second = alice.say(&room, "second").await;
    gateway.wait_for("erin", &second).await;
    gateway.wait_for("bob", &second).await;
    erin.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    let third = alice.say(&room, "third").await;
    gateway.wait_for("bob", &third).await;
    // Who is thrown out need not hear of it, who is asked back must.
    erin.post(&format!("/join/{room}"), json!({})).await.ok();
    alice
        .post(
            &format!("/rooms/{room}/kick"),
            json!({ "user_id": erin.id }),
        )
        .await
        .ok();
    alice
        .post(
            &format!("/rooms/{room}/invite"),
            json!({ "user_id": erin.id }),
        )
        .await
        .ok();
    let invite = gateway.wait(|told| told["type"] == "m.room.member").await;
    let invite = invite["event_id"].as_str().unwrap().to_owned();
    assert_eq!(gateway.events("bob"), [first, second.clone(), third]);
    assert_eq!(gateway.events("erin"), [second, invite]);
}
