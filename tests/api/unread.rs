//! What counts as unread ("Receiving notifications", "Predefined rules"): by the rules of most people, by the rules of
//! single people, and how little of it is kept.

use homing::{
    preferences::default_rules,
    room::power,
    storage::{UserNid, highlights},
};
use ruma::{
    RoomId, UInt, UserId,
    events::AnySyncTimelineEvent,
    push::{Action, PushConditionRoomCtx},
    serde::Raw,
};
use serde_json::{Value, json};

use crate::server::{TestServer, User};

const RULES: &str = "/pushrules/global";

/// Unread in a room: highlights, notifications.
async fn unread(user: &User<'_>, room: &str) -> (i64, i64) {
    let sync = user.sync("").await;
    let unread = &sync["rooms"]["join"][room]["unread_notifications"];
    let count = |key: &str| unread[key].as_i64().expect("a count");
    (count("highlight_count"), count("notification_count"))
}

/// How many rows are kept because events count otherwise for a user than for most.
async fn rows(user: &User<'_>) -> usize {
    let app = &user.server.app;
    let id: &UserId = user.id.as_str().try_into().unwrap();
    let nid: UserNid = app.user(id).await.unwrap();
    highlights::of_user(&app.db, nid).await.unwrap().len()
}

async fn send(user: &User<'_>, room: &str, kind: &str, content: Value) -> String {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let txn = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = format!("/rooms/{room}/send/{kind}/unread{txn}");
    let answer = user.put(&path, content).await.ok();
    answer["event_id"].as_str().unwrap().to_owned()
}

async fn mention(user: &User<'_>, room: &str, whom: &User<'_>) -> String {
    let content =
        json!({ "msgtype": "m.text", "body": "you", "m.mentions": { "user_ids": [whom.id] } });
    send(user, room, "m.room.message", content).await
}

async fn read(user: &User<'_>, room: &str, event: &str) {
    let path = format!("/rooms/{room}/receipt/m.read/{event}");
    user.post(&path, json!({})).await.ok();
}

async fn joined<'s>(server: &'s TestServer, room: &str, name: &str) -> User<'s> {
    let user = server.register(name).await;
    user.post(&format!("/join/{room}"), json!({})).await.ok();
    user
}

/// What the predefined rules of `reader` say to an event.
pub async fn notifies(reader: &User<'_>, room: &str, event: &Value) -> (bool, bool) {
    let app = &reader.server.app;
    let id: &RoomId = room.try_into().unwrap();
    let user: &UserId = reader.id.as_str().try_into().unwrap();
    let of_room = app.room(id).await.unwrap();
    let members = of_room.seen().joined_count;
    let name = reader.get(&format!("/profile/{user}/displayname")).await;
    let name = name.body["displayname"].as_str().unwrap_or(&reader.id);
    let mut context = PushConditionRoomCtx::new(
        id.to_owned(),
        UInt::try_from(members).unwrap(),
        user.to_owned(),
        name.to_owned(),
    );
    context.power_levels = Some(power::now(app, &of_room).await.unwrap().into());
    let raw = Raw::<AnySyncTimelineEvent>::from_json_string(event.to_string()).unwrap();
    let rules = default_rules(user);
    let actions = rules.get_actions(&raw, &context).await;
    (
        actions.iter().any(Action::is_highlight),
        actions.iter().any(Action::should_notify),
    )
}

/// Messages of alice, by type and content.
pub fn messages(alice: &str, bob: &str) -> Vec<(&'static str, Value)> {
    let text = |body: &str| json!({ "msgtype": "m.text", "body": body });
    let related = |rel_type: &str, extra: Value| {
        let mut content = text("related");
        content["m.relates_to"] = json!({ "rel_type": rel_type, "event_id": "$x", "key": "+" });
        for (key, value) in extra.as_object().unwrap() {
            content[key] = value.clone();
        }
        content
    };
    let with_mention = |mut content: Value, mentions: Value| {
        content["m.mentions"] = mentions;
        content
    };
    let edit = related("m.replace", json!({ "m.new_content": text("x") }));
    vec![
        ("m.room.message", text("hello bob")),
        ("m.room.message", text("hello bobby")),
        ("m.room.message", text("BOB!")),
        ("m.room.message", text("what says Captain Builder?")),
        ("m.room.message", text("what says the captain?")),
        ("m.room.message", text("@room: hello")),
        ("m.room.message", text("the room")),
        (
            "m.room.message",
            with_mention(text("bob and @room"), json!({})),
        ),
        (
            "m.room.message",
            json!({ "msgtype": "m.notice", "body": "bob" }),
        ),
        (
            "m.room.message",
            json!({ "msgtype": "m.notice", "body": "beep" }),
        ),
        (
            "m.room.message",
            json!({ "msgtype": "m.emote", "body": "waves" }),
        ),
        (
            "m.room.message",
            json!({ "msgtype": "m.image", "body": "a", "url": "mxc://a/b" }),
        ),
        ("m.room.message", json!({})),
        ("m.room.message", edit.clone()),
        (
            "m.room.message",
            with_mention(edit, json!({ "user_ids": [bob] })),
        ),
        ("m.room.message", related("m.reference", json!({}))),
        (
            "m.room.message",
            with_mention(text("you"), json!({ "user_ids": [bob] })),
        ),
        (
            "m.room.message",
            with_mention(text("me"), json!({ "user_ids": [alice] })),
        ),
        (
            "m.room.message",
            with_mention(text("all"), json!({ "room": true })),
        ),
        (
            "m.room.message",
            with_mention(
                json!({ "msgtype": "m.notice", "body": "you" }),
                json!({ "user_ids": [bob] }),
            ),
        ),
        (
            "m.reaction",
            json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": "$x", "key": "+" } }),
        ),
        (
            "m.room.encrypted",
            json!({ "algorithm": "m.megolm.v1.aes-sha2" }),
        ),
        (
            "m.room.encrypted",
            with_mention(json!({}), json!({ "user_ids": [bob] })),
        ),
        ("m.room.encrypted", related("m.replace", json!({}))),
        ("m.call.invite", json!({ "call_id": "1", "version": "1" })),
        ("m.call.answer", json!({ "call_id": "1", "version": "1" })),
        ("m.sticker", json!({ "body": "s", "url": "mxc://a/b" })),
        ("org.example.other", json!({ "body": "bob" })),
    ]
}

/// State events of alice, by type and content.
pub fn state_events() -> Vec<(&'static str, Value)> {
    vec![
        ("m.room.topic", json!({ "topic": "bob" })),
        ("m.room.name", json!({ "name": "bob" })),
        ("m.room.pinned_events", json!({ "pinned": [] })),
        ("m.room.server_acl", json!({ "allow": ["*"] })),
        (
            "m.room.member",
            json!({ "membership": "join", "displayname": "bob" }),
        ),
        (
            "m.room.tombstone",
            json!({ "body": "gone", "replacement_room": "!x:y" }),
        ),
    ]
}

#[tokio::test]
async fn counts_are_those_of_the_predefined_rules() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let name = json!({ "displayname": "captain builder" });
    bob.put(&format!("/profile/{}/displayname", bob.id), name)
        .await
        .ok();
    let (events, state) = (messages(&alice.id, &bob.id), state_events());
    for third in [false, true] {
        let room = alice
            .create_room(json!({ "preset": "public_chat", "invite": [bob.id] }))
            .await;
        bob.post(&format!("/join/{room}"), json!({})).await.ok();
        if third {
            joined(&server, &room, "carol").await;
        }
        let (mut highlights, mut notifications) = unread(&bob, &room).await;
        assert_eq!((highlights, notifications), (0, 0), "nothing before");
        let messages = events.iter().map(|event| (event, false));
        for ((kind, content), is_state) in messages.chain(state.iter().map(|event| (event, true))) {
            let id = if is_state {
                let key = if *kind == "m.room.member" {
                    &*alice.id
                } else {
                    ""
                };
                let path = format!("/rooms/{room}/state/{kind}/{key}");
                alice.put(&path, content.clone()).await.ok()["event_id"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            } else {
                send(&alice, &room, kind, content.clone()).await
            };
            let event = bob.get(&format!("/rooms/{room}/event/{id}")).await.ok();
            let (highlights_now, notifies_now) = notifies(&bob, &room, &event).await;
            highlights += i64::from(highlights_now && notifies_now);
            notifications += i64::from(notifies_now);
            let counts = unread(&bob, &room).await;
            assert_eq!(counts, (highlights, notifications), "{kind} {content}");
        }
        assert!(highlights > 3 && notifications > 10);
    }
}

#[tokio::test]
async fn muted_rooms_cost_nothing_and_are_counted_when_the_rules_change() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let bob = joined(&server, &room, "bob").await;
    joined(&server, &room, "carol").await;
    let of_room = json!([{ "kind": "event_match", "key": "room_id", "pattern": room }]);
    let silent = json!({ "actions": [] });
    let on = |enabled: bool| json!({ "enabled": enabled });
    let group = ["underride/.m.rule.message", "underride/.m.rule.encrypted"];
    // How a room is muted, how that ends, and whether mentions are heard meanwhile.
    let cases = [
        (vec![(format!("room/{room}"), silent.clone())], vec![], true),
        (
            vec![(
                "override/mute".to_owned(),
                json!({ "actions": [], "conditions": of_room }),
            )],
            vec![],
            false,
        ),
        (
            vec![("override/.m.rule.master/enabled".to_owned(), on(true))],
            vec![("override/.m.rule.master/enabled".to_owned(), on(false))],
            false,
        ),
        (
            group
                .map(|rule| (format!("{rule}/actions"), silent.clone()))
                .to_vec(),
            group
                .map(|rule| (format!("{rule}/actions"), json!({ "actions": ["notify"] })))
                .to_vec(),
            true,
        ),
    ];
    for (mute, unmute, hears_mentions) in cases {
        alice.say(&room, "before").await;
        assert_eq!(unread(&bob, &room).await, (0, 1));
        for (rule, body) in &mute {
            bob.put(&format!("{RULES}/{rule}"), body.clone()).await.ok();
        }
        let before = rows(&bob).await;
        for _ in 0..3 {
            alice.say(&room, "not heard").await;
            send(&alice, &room, "m.room.encrypted", json!({})).await;
        }
        assert_eq!(unread(&bob, &room).await, (0, 0), "{mute:?}");
        assert_eq!(rows(&bob).await, before, "{mute:?}");
        mention(&alice, &room, &bob).await;
        let heard = i64::from(hears_mentions);
        assert_eq!(unread(&bob, &room).await, (heard, heard), "{mute:?}");
        for (rule, body) in &unmute {
            bob.put(&format!("{RULES}/{rule}"), body.clone()).await.ok();
        }
        if unmute.is_empty() {
            let (rule, _) = &mute[0];
            bob.delete(&format!("{RULES}/{rule}")).await.ok();
        }
        assert_eq!(unread(&bob, &room).await, (heard, 8), "{mute:?}");
        let last = alice.say(&room, "last").await;
        read(&bob, &room, &last).await;
        assert_eq!(unread(&bob, &room).await, (0, 0));
    }
}

#[tokio::test]
async fn a_muted_room_still_says_what_is_singled_out() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let bob = joined(&server, &room, "bob").await;
    mention(&alice, &room, &bob).await;
    let mute = json!({ "actions": [], "conditions":
        [{ "kind": "event_match", "key": "room_id", "pattern": room }] });
    bob.put(&format!("{RULES}/override/mute"), mute).await.ok();
    let cake = json!({ "actions": ["notify"], "conditions":
        [{ "kind": "event_match", "key": "content.body", "pattern": "*cake*" }] });
    bob.put(&format!("{RULES}/override/cake?before=mute"), cake)
        .await
        .ok();
    assert_eq!(unread(&bob, &room).await, (0, 0), "a mention is muted too");
    alice.say(&room, "there is cake").await;
    alice.say(&room, "there is none").await;
    assert_eq!(unread(&bob, &room).await, (0, 1));
    bob.delete(&format!("{RULES}/override/mute")).await.ok();
    assert_eq!(unread(&bob, &room).await, (1, 3), "nothing counts twice");
}

#[tokio::test]
async fn what_ignored_people_say_is_not_unread_and_leaves_no_rows() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let bob = joined(&server, &room, "bob").await;
    let eve = joined(&server, &room, "eve").await;
    let list = json!({ "ignored_users": { eve.id.clone(): {} } });
    let path = format!("/user/{}/account_data/m.ignored_user_list", bob.id);
    bob.put(&path, list).await.ok();
    let mut heard = Vec::new();
    for _ in 0..3 {
        eve.say(&room, "spam").await;
        mention(&eve, &room, &bob).await;
        heard.push(alice.say(&room, "hello").await);
        bob.say(&room, "shouting").await;
    }
    assert_eq!(unread(&bob, &room).await, (0, 3));
    assert_eq!(unread(&eve, &room).await, (0, 4 + 6 - 4));
    assert_eq!(rows(&bob).await, 0);
    read(&bob, &room, &heard[1]).await;
    assert_eq!(unread(&bob, &room).await, (0, 1), "read in part");
    read(&bob, &room, &heard[2]).await;
    assert_eq!(unread(&bob, &room).await, (0, 0));
    eve.say(&room, "spam").await;
    assert_eq!(unread(&bob, &room).await, (0, 0));
    bob.put(&path, json!({ "ignored_users": {} })).await.ok();
    assert_eq!(
        unread(&bob, &room).await,
        (0, 1),
        "the last spam is heard now"
    );
    eve.say(&room, "heard").await;
    assert_eq!(unread(&bob, &room).await, (0, 2));
}

#[tokio::test]
async fn counts_stay_right_when_ignoring_begins_and_ends() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let bob = joined(&server, &room, "bob").await;
    let eve = joined(&server, &room, "eve").await;
    let path = format!("/user/{}/account_data/m.ignored_user_list", bob.id);
    let ignore = json!({ "ignored_users": { eve.id.clone(): {} } });
    let hear = json!({ "ignored_users": {} });
    bob.put(&path, ignore.clone()).await.ok();
    for _ in 0..3 {
        eve.say(&room, "spam").await;
    }
    let one = alice.say(&room, "one").await;
    alice.say(&room, "two").await;
    assert_eq!(unread(&bob, &room).await, (0, 2));
    bob.put(&path, hear.clone()).await.ok();
    assert_eq!(unread(&bob, &room).await, (0, 5));
    read(&bob, &room, &one).await;
    assert_eq!(unread(&bob, &room).await, (0, 1));
    alice.say(&room, "three").await;
    eve.say(&room, "four").await;
    assert_eq!(unread(&bob, &room).await, (0, 3));

    bob.put(&path, ignore).await.ok();
    assert_eq!(unread(&bob, &room).await, (0, 2), "what eve said is hidden");
    let five = alice.say(&room, "five").await;
    for _ in 0..3 {
        bob.say(&room, "mine").await;
    }
    read(&bob, &room, &five).await;
    assert_eq!(unread(&bob, &room).await, (0, 0), "nobody reads their own");
}

#[tokio::test]
async fn who_never_reads_has_a_limited_number_of_rows() {
    let server = TestServer::start_with(|config| config.rate_limits.enabled = false).await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let bob = joined(&server, &room, "bob").await;
    let carol = joined(&server, &room, "carol").await;
    let quiet = json!({ "actions": [], "pattern": "you" });
    carol
        .put(&format!("{RULES}/content/quiet"), quiet)
        .await
        .ok();
    let mut last = String::new();
    for _ in 0..510 {
        last = mention(&alice, &room, &bob).await;
    }
    assert_eq!((rows(&bob).await, rows(&carol).await), (500, 500));
    assert_eq!(unread(&bob, &room).await, (500, 510));
    assert_eq!(unread(&carol, &room).await, (0, 0));
    read(&bob, &room, &last).await;
    assert_eq!((rows(&bob).await, unread(&bob, &room).await), (0, (0, 0)));
    mention(&alice, &room, &bob).await;
    assert_eq!((rows(&bob).await, unread(&bob, &room).await), (1, (1, 1)));
    bob.post(&format!("/rooms/{room}/leave"), json!({}))
        .await
        .ok();
    assert_eq!(
        rows(&bob).await,
        0,
        "a room that was left has nothing unread"
    );
}

#[tokio::test]
async fn what_one_sends_while_one_reads_is_not_unread() {
    let server = TestServer::start_with(|config| config.rate_limits.enabled = false).await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let bob = joined(&server, &room, "bob").await;
    for round in 0..20 {
        let heard = alice.say(&room, "hello").await;
        tokio::join!(
            bob.say(&room, "one"),
            read(&bob, &room, &heard),
            bob.say(&room, "two"),
            bob.say(&room, "three"),
        );
        assert_eq!(unread(&bob, &room).await, (0, 0), "round {round}");
    }
}

#[tokio::test]
async fn what_refers_to_a_thread_is_counted_there_also_after_a_restart() {
    let server = TestServer::start().await;
    let (token, room, reply) = {
        let alice = server.register("alice").await;
        let room = alice.create_room(json!({ "preset": "public_chat" })).await;
        let bob = joined(&server, &room, "bob").await;
        let root = alice.say(&room, "root").await;
        let reply = reply(&alice, &room, "m.thread", &root).await;
        reply_to(&alice, &room, &reply).await;
        read(&bob, &room, &reply_to(&alice, &room, &reply).await).await;
        assert_eq!(unread(&bob, &room).await, (0, 0));
        reply_to(&alice, &room, &reply).await;
        assert_eq!(unread(&bob, &room).await, (0, 1));
        ((alice.token.clone(), bob.token.clone()), room, root)
    };
    let server = server.restart().await;
    let user = |token: &str, name: &str| User {
        server: &server,
        id: format!("@{name}:{}", server.app.name()),
        token: token.to_owned(),
        device_id: String::new(),
    };
    let (alice, bob) = (user(&token.0, "alice"), user(&token.1, "bob"));
    assert_eq!(unread(&bob, &room).await, (0, 1), "as before");
    self::reply(&alice, &room, "m.thread", &reply).await;
    assert_eq!(unread(&bob, &room).await, (0, 2));
}

/// Sends a message that relates to another.
async fn reply(user: &User<'_>, room: &str, rel_type: &str, event: &str) -> String {
    let content = json!({ "msgtype": "m.text", "body": "re",
        "m.relates_to": { "rel_type": rel_type, "event_id": event } });
    send(user, room, "m.room.message", content).await
}

async fn reply_to(user: &User<'_>, room: &str, event: &str) -> String {
    reply(user, room, "m.reference", event).await
}

#[tokio::test]
async fn a_redacted_mention_highlights_no_more() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({ "preset": "public_chat" })).await;
    let bob = joined(&server, &room, "bob").await;
    let redacted = mention(&alice, &room, &bob).await;
    mention(&alice, &room, &bob).await;
    assert_eq!(unread(&bob, &room).await, (2, 2));
    let path = format!("/rooms/{room}/redact/{redacted}/r");
    alice.put(&path, json!({})).await.ok();
    assert_eq!((unread(&bob, &room).await.0, rows(&bob).await), (1, 1));
    let listed = bob.get("/notifications").await.ok();
    assert!(!listed.to_string().contains(&redacted), "{listed}");
}
