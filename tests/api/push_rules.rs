use homing::storage::{
    UserNid,
    highlights::{self, HIGHLIGHT, NOTIFIES, SILENT},
};
use serde_json::{Value, json};

use crate::server::{TestServer, User};

const RULES: &str = "/pushrules/global";

#[tokio::test]
async fn everybody_has_the_predefined_rules() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let all = alice.get("/pushrules/").await.ok();
    let global = alice.get("/pushrules/global/").await.ok();
    assert_eq!(all["global"], global);
    let ids = |kind: &str| -> Vec<String> {
        let rules = global[kind].as_array().unwrap().iter();
        rules
            .map(|rule| rule["rule_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let override_ids = ids("override");
    for id in [
        ".m.rule.master",
        ".m.rule.suppress_notices",
        ".m.rule.invite_for_me",
        ".m.rule.member_event",
        ".m.rule.is_user_mention",
        ".m.rule.contains_display_name",
        ".m.rule.is_room_mention",
        ".m.rule.roomnotif",
        ".m.rule.tombstone",
        ".m.rule.reaction",
        ".m.rule.room.server_acl",
        ".m.rule.suppress_edits",
    ] {
        assert!(override_ids.iter().any(|known| known == id), "{id}");
    }
    assert_eq!(ids("content"), [".m.rule.contains_user_name"]);
    assert_eq!(
        ids("underride"),
        [
            ".m.rule.call",
            ".m.rule.encrypted_room_one_to_one",
            ".m.rule.room_one_to_one",
            ".m.rule.message",
            ".m.rule.encrypted"
        ]
    );
}

#[tokio::test]
async fn rules_are_made_moved_changed_and_deleted() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let at = |id: &str| format!("{RULES}/content/{id}");
    let cake = json!({ "pattern": "cake*lie", "actions": ["notify"] });
    alice.put(&at("a"), cake.clone()).await.ok();
    alice.put(&at("b"), cake.clone()).await.ok();
    alice.put(&at("c?after=b"), cake.clone()).await.ok();
    alice.put(&at("a?before=b"), cake.clone()).await.ok();
    let rules = alice.get("/pushrules/").await.ok();
    let ids: Vec<&Value> = rules["global"]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| &rule["rule_id"])
        .collect();
    assert_eq!(ids, ["a", "b", "c", ".m.rule.contains_user_name"]);
    assert_eq!(
        alice.get(&at("a")).await.ok(),
        json!({ "rule_id": "a", "pattern": "cake*lie", "actions": ["notify"], "default": false, "enabled": true })
    );
    let sound = json!({ "actions": ["notify", { "set_tweak": "sound", "value": "default" }] });
    alice.put(&at("a/actions"), sound.clone()).await.ok();
    assert_eq!(alice.get(&at("a/actions")).await.ok(), sound);
    alice
        .put(&at("a/enabled"), json!({ "enabled": false }))
        .await
        .ok();
    let enabled = alice.get(&at("a/enabled")).await.ok();
    assert_eq!(enabled, json!({ "enabled": false }));
    alice.put(&at("a?after=c"), cake).await.ok();
    let enabled = alice.get(&at("a/enabled")).await.ok();
    assert_eq!(enabled, json!({ "enabled": false }), "it stays disabled");
    alice.delete(&at("a")).await.ok();
    alice.get(&at("a")).await.fails(404, "M_NOT_FOUND");

    // A rule without conditions is for every event.
    let every = format!("{RULES}/underride/every");
    alice
        .put(&every, json!({ "actions": ["notify"] }))
        .await
        .ok();
    assert_eq!(alice.get(&every).await.ok()["conditions"], json!([]));

    let master = format!("{RULES}/override/.m.rule.master");
    alice
        .put(&format!("{master}/enabled"), json!({ "enabled": true }))
        .await
        .ok();
    assert_eq!(alice.get(&master).await.ok()["enabled"], true);
    alice.delete(&master).await.fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn impossible_rules_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let content = json!({ "pattern": "cake", "actions": [] });
    for (path, body, code) in [
        ("content/.mine", &content, "M_INVALID_PARAM"),
        ("content/a%2Fb", &content, "M_INVALID_PARAM"),
        ("content/a%5Cb", &content, "M_INVALID_PARAM"),
        ("content/a?before=nothing", &content, "M_UNKNOWN"),
        ("content/a?after=.m.rule.x", &content, "M_INVALID_PARAM"),
        ("content/a?after=a", &content, "M_INVALID_PARAM"),
        ("nonsense/a", &content, "M_INVALID_PARAM"),
        ("room/nowhere", &content, "M_INVALID_PARAM"),
        ("sender/alice", &content, "M_INVALID_PARAM"),
        (
            "content/a",
            &json!({ "pattern": "x", "actions": ["shout"] }),
            "M_INVALID_PARAM",
        ),
        ("content/a", &json!({ "actions": [] }), "M_MISSING_PARAM"),
        ("content/a", &json!({ "pattern": "x" }), "M_MISSING_PARAM"),
        (
            "content/a",
            &json!({ "pattern": 1, "actions": [] }),
            "M_BAD_JSON",
        ),
        (
            "override/a",
            &json!({ "conditions": 1, "actions": [] }),
            "M_BAD_JSON",
        ),
    ] {
        let answer = alice.put(&format!("{RULES}/{path}"), body.clone()).await;
        answer.fails(400, code);
    }
    let large = json!({ "pattern": "x".repeat(9000), "actions": [] });
    alice
        .put(&format!("{RULES}/content/a"), large)
        .await
        .fails(413, "M_TOO_LARGE");
    let long = json!({ "pattern": "x".repeat(256), "actions": [] });
    let wild = json!({ "pattern": "a*".repeat(9), "actions": [] });
    let hidden = json!({ "actions": [], "conditions": [
        { "kind": "event_match", "key": "content.body", "pattern": "?".repeat(9) } ] });
    for (kind, rule) in [("content", long), ("content", wild), ("underride", hidden)] {
        let path = format!("{RULES}/{kind}/dear");
        alice.put(&path, rule).await.fails(400, "M_INVALID_PARAM");
    }
    for number in 0..51 {
        let glob = json!({ "pattern": format!("{number}*"), "actions": [] });
        let path = format!("{RULES}/content/{number}");
        let answer = alice.put(&path, glob).await;
        match number {
            50 => drop(answer.fails(413, "M_TOO_LARGE")),
            _ => drop(answer.ok()),
        }
    }
    for path in [
        "content/nothing",
        "content/nothing/enabled",
        "content/nothing/actions",
        "nonsense/nothing",
    ] {
        alice
            .get(&format!("{RULES}/{path}"))
            .await
            .fails(404, "M_NOT_FOUND");
    }
    let unknown = format!("{RULES}/content/nothing");
    alice.delete(&unknown).await.fails(404, "M_NOT_FOUND");
    alice
        .put(&format!("{unknown}/enabled"), json!({ "enabled": true }))
        .await
        .fails(404, "M_NOT_FOUND");
    alice
        .put(&format!("{unknown}/actions"), json!({ "actions": [] }))
        .await
        .fails(404, "M_NOT_FOUND");
}

/// How events counted for a user since they last read.
async fn flags(user: &User<'_>) -> Vec<i64> {
    let app = &user.server.app;
    let nid: UserNid = app
        .user(user.id.as_str().try_into().unwrap())
        .await
        .unwrap();
    let mut found = highlights::of_user(&app.db, nid).await.unwrap();
    found.sort_by_key(|highlight| highlight.pos);
    found.iter().map(|highlight| highlight.flags).collect()
}

async fn send(user: &User<'_>, room: &str, kind: &str, content: Value) {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let txn = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    user.put(&format!("/rooms/{room}/send/{kind}/push{txn}"), content)
        .await
        .ok();
}

#[tokio::test]
async fn mentions_highlight_and_most_events_need_no_row() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    assert_eq!(flags(&bob).await, [NOTIFIES], "the invite notifies");
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    assert_eq!(flags(&bob).await, [0; 0], "it was answered");
    let notified = async || {
        let room = server.app.room(room.as_str().try_into().unwrap()).await;
        room.unwrap().seen().unread_idx
    };
    assert_eq!(notified().await, 0);
    alice.say(&room, "hello you").await;
    assert_eq!((notified().await, flags(&bob).await), (1, vec![]));

    let text = |body: &str| json!({ "msgtype": "m.text", "body": body });
    let mention = json!({ "msgtype": "m.text", "body": "you", "m.mentions": { "user_ids": [bob.id, alice.id] } });
    send(&alice, &room, "m.room.message", mention.clone()).await;
    assert_eq!((notified().await, flags(&bob).await), (2, vec![HIGHLIGHT]));
    assert_eq!(
        flags(&alice).await,
        [0; 0],
        "nobody is notified of their own"
    );
    let everybody = json!({ "msgtype": "m.text", "body": "all", "m.mentions": { "room": true } });
    send(&alice, &room, "m.room.message", everybody.clone()).await;
    assert_eq!(flags(&bob).await, [HIGHLIGHT; 2]);
    send(&bob, &room, "m.room.message", everybody).await;
    assert_eq!(flags(&alice).await, [0; 0], "bob has no power over all");
    assert_eq!(notified().await, 4);

    let edit = json!({
        "msgtype": "m.text", "body": "* x", "m.new_content": text("x"),
        "m.relates_to": { "rel_type": "m.replace", "event_id": "$x" }
    });
    send(&alice, &room, "m.room.message", edit).await;
    let notice = json!({ "msgtype": "m.notice", "body": "beep" });
    send(&alice, &room, "m.room.message", notice).await;
    let reaction =
        json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": "$x", "key": "+" } });
    send(&alice, &room, "m.reaction", reaction).await;
    send(&alice, &room, "org.example.other", json!({})).await;
    assert_eq!(notified().await, 4, "none of these notifies");
    send(&alice, &room, "m.room.encrypted", json!({})).await;
    assert_eq!(notified().await, 5);
    assert_eq!(flags(&bob).await, [HIGHLIGHT; 2]);
}

#[tokio::test]
async fn who_has_no_name_is_not_named_by_an_empty_text() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let path = format!("/profile/{}/displayname", bob.id);
    bob.put(&path, json!({ "displayname": "" })).await.ok();
    let rule = json!({ "pattern": "cake", "actions": ["notify"] });
    bob.put(&format!("{RULES}/content/cake"), rule).await.ok();
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.say(&room, "").await;
    assert_eq!(flags(&bob).await, [0; 0]);
    alice.say(&room, &format!("hello {}", bob.id)).await;
    assert_eq!(flags(&bob).await, [HIGHLIGHT]);
}

#[tokio::test]
async fn rules_of_ones_own_and_ignored_people() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let word = json!({ "pattern": "cake", "actions": ["notify", { "set_tweak": "highlight" }] });
    let cake = format!("{RULES}/content/cake");
    bob.put(&cake, word).await.ok();
    alice.say(&room, "no sweets").await;
    assert_eq!(flags(&bob).await, [0; 0]);
    alice.say(&room, "the CAKE is a lie").await;
    assert_eq!(flags(&bob).await, [HIGHLIGHT]);
    let quiet = json!({ "pattern": "hush", "actions": [] });
    let hush = format!("{RULES}/content/hush");
    bob.put(&hush, quiet).await.ok();
    alice.say(&room, "hush now").await;
    assert_eq!(flags(&bob).await, [HIGHLIGHT, SILENT]);
    bob.delete(&hush).await.ok();
    bob.delete(&cake).await.ok();
    let every = json!({ "actions": ["notify"], "conditions": [
        { "kind": "event_match", "key": "type", "pattern": "org.example.*" } ] });
    bob.put(&format!("{RULES}/underride/every"), every)
        .await
        .ok();
    send(&alice, &room, "org.example.other", json!({})).await;
    assert_eq!(flags(&bob).await, [HIGHLIGHT, SILENT, NOTIFIES]);

    let list = json!({ "ignored_users": { alice.id.clone(): {} } });
    let path = format!("/user/{}/account_data/m.ignored_user_list", bob.id);
    bob.put(&path, list).await.ok();
    alice.say(&room, "do you hear me?").await;
    alice.create_room(json!({ "invite": [bob.id] })).await;
    assert_eq!(flags(&bob).await.len(), 3, "an ignored invite is silent");
    let nobody = json!({ "ignored_users": {} });
    bob.put(&path, nobody).await.ok();
    alice.say(&room, "and now?").await;
    assert_eq!(flags(&bob).await.len(), 3);
}

#[tokio::test]
async fn long_texts_are_held_against_rules_as_far_as_that_is_cheap() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let actions = json!(["notify", { "set_tweak": "highlight" }]);
    for (id, pattern) in [("letter", "a"), ("word", "cake"), ("wild", "a*b*c*d")] {
        let rule = json!({ "pattern": pattern, "actions": actions });
        let path = format!("{RULES}/content/{id}");
        bob.put(&path, rule).await.ok();
    }
    // A place where each pattern may begin, again and again.
    let long = "aa ".repeat(20_000);
    alice.say(&room, &long).await;
    assert_eq!(flags(&bob).await, [0; 0]);
    alice.say(&room, &format!("cake {long}")).await;
    assert_eq!(flags(&bob).await, [HIGHLIGHT]);
    // Letters of several bytes are not cut in two.
    alice.say(&room, &format!("x{}", "ö".repeat(20_000))).await;
    alice.say(&room, &format!("{long} cake")).await;
    assert_eq!(flags(&bob).await, [HIGHLIGHT], "it is too far behind");
}

#[tokio::test]
async fn notifications_are_listed_in_pages() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({})).await;
    alice.say(&room, "before bob came").await;
    alice
        .post(
            &format!("/rooms/{room}/invite"),
            json!({ "user_id": bob.id }),
        )
        .await
        .ok();
    let invites = bob.get("/notifications").await.ok();
    assert_eq!(
        invites["notifications"][0]["event"]["content"]["membership"],
        "invite"
    );
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let mut sent = Vec::new();
    for number in 0..5 {
        sent.push(alice.say(&room, &format!("message {number}")).await);
    }
    bob.say(&room, "mine").await;
    send(&alice, &room, "m.reaction", json!({})).await;
    let mention =
        json!({ "msgtype": "m.text", "body": "you", "m.mentions": { "user_ids": [bob.id] } });
    send(&alice, &room, "m.room.message", mention).await;

    let highlights = bob.get("/notifications?only=highlight").await.ok();
    let highlights = highlights["notifications"].as_array().unwrap();
    assert_eq!(highlights.len(), 1);
    assert_eq!(highlights[0]["event"]["content"]["body"], "you");
    assert_eq!(highlights[0]["room_id"], json!(room));
    assert_eq!(highlights[0]["read"], false);

    let mut found = Vec::new();
    let mut path = "/notifications?limit=2".to_owned();
    loop {
        let page = bob.get(&path).await.ok();
        let events = page["notifications"].as_array().unwrap().iter();
        found.extend(events.map(|one| one["event"]["event_id"].as_str().unwrap().to_owned()));
        match page["next_token"].as_str() {
            Some(token) => path = format!("/notifications?limit=2&from={token}"),
            None => break,
        }
    }
    sent.reverse();
    assert_eq!(found.len(), 6, "not what came before, nor one's own");
    assert_eq!(found[1..], sent);
    alice
        .get("/notifications?from=x")
        .await
        .fails(400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_sync_tells_the_rules_and_what_they_count() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = alice.create_room(json!({ "invite": [bob.id] })).await;
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    let rules_of = |sync: &Value| {
        let events = sync["account_data"]["events"].as_array().cloned();
        let mut rules = events.unwrap_or_default();
        rules.retain(|event| event["type"] == "m.push_rules");
        rules
    };
    let first = bob.sync("").await;
    let rules = rules_of(&first);
    assert_eq!(rules.len(), 1, "also if none was ever set");
    assert_eq!(
        rules[0]["content"]["global"]["override"][0]["rule_id"],
        ".m.rule.master"
    );
    let word = json!({ "pattern": "cake", "actions": ["notify", { "set_tweak": "highlight" }] });
    bob.put(&format!("{RULES}/content/cake"), word).await.ok();
    let since = first["next_batch"].as_str().unwrap();
    let changed = rules_of(&bob.sync(&format!("since={since}")).await);
    assert_eq!(
        changed[0]["content"]["global"]["content"][0]["rule_id"],
        "cake"
    );
    alice.say(&room, "cake for all").await;
    alice.say(&room, "nothing else").await;
    let mute = json!({ "actions": [] });
    bob.put(&format!("{RULES}/room/{room}"), mute).await.ok();
    alice.say(&room, "not to be heard").await;
    let last = bob.sync("").await;
    assert_eq!(rules_of(&last).len(), 1);
    assert_eq!(
        last["rooms"]["join"][&room]["unread_notifications"],
        json!({ "highlight_count": 1, "notification_count": 1 }),
        "the room is muted but for the word"
    );
}
